"""Several bootstrap rounds as one command: clean, train on what is clean, clean with what came out.

A round's models write and judge the texts of the next (BLIP, arXiv 2201.12086, section 3.3). The
loop is a list of steps in one folder; see `steps`.
"""

from capfilt.rounds.config import Rounds
from capfilt.train.plan import PairFolder, TrainPlan

__all__ = ["PairFolder", "Rounds", "TrainPlan"]
