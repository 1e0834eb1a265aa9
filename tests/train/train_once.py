"""The training of test_training.py as a process: python -m tests.train.train_once DATA OUT."""

import sys
from pathlib import Path

from tests.train.test_training import run, training

if __name__ == "__main__":
    run(training(Path(sys.argv[1]), Path(sys.argv[2])))
