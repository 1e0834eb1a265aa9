"""What the experiment compares, apart from how it is run."""

from dataclasses import dataclass
from typing import Final

from capfilt.errors import InputError
from capfilt.stages.policies.blip import Origins
from pipelines.experiments.start import WORLD, Beginning


@dataclass(frozen=True, slots=True)
class Arm:
    """Data to pre-train on: the texts of one cleaning that a policy keeps, and how often each.

    `clean` names a cleaning, None is the raw web. `paper`: what it is there.
    """

    name: str
    clean: str | None
    origins: Origins = "both"
    filtered: bool = True
    copies: int = 1
    paper: str = ""


@dataclass(frozen=True, slots=True)
class Cleaning:
    """A pass of captioner and filter over the web; `models` names the round that they come from.

    `shared`: one model, fine-tuned with all three losses, is both (Table 4).
    """

    name: str
    models: str
    beams: int | None = None
    shared: bool = False


RAW: Final = Arm("raw web", None, paper="Table 1: none")
REPEATED: Final = Arm("raw web, repeated", None, copies=2, paper="Table 12")
FILTERED: Final = Arm("F", "nucleus", "web", paper="Table 1: F")
CAPTIONED: Final = Arm("C", "nucleus", filtered=False, paper="Table 1: C")
BOTH: Final = Arm("C+F", "nucleus", paper="Table 1: C+F")
BEAM: Final = Arm("C+F, beam search", "beam", paper="Table 2")
SHARED: Final = Arm("C+F, shared", "shared", paper="Table 4")
SECOND: Final = Arm("C+F, second round", "second")
ARMS: Final = (RAW, REPEATED, FILTERED, CAPTIONED, BOTH, BEAM, SHARED, SECOND)

CLEANINGS: Final = (
    Cleaning("nucleus", RAW.name),
    Cleaning("beam", RAW.name, beams=3),
    Cleaning("shared", RAW.name, shared=True),
    Cleaning("second", BOTH.name),
)


@dataclass(frozen=True, slots=True)
class Design:
    """Sizes and budgets. Every arm has the same steps, batch, and share of human pairs.

    start: what every pre-training begins with. rows: of the simulated web, before dead links.
    human: pictures with one text. held_out: pictures with five. seeds: trainings of each arm.
    steps, batch_size, peak_lr: of each pre-training; human_weight: the part of its samples that are
    human pairs. captioner_steps, filter_steps: of fine-tuning on human pairs; judged_steps: those
    of the captioners whose captions are compared, as Table 1 compares fine-tuned ones.
    """

    start: Beginning = Beginning()
    rows: int = 6000
    human: int = 1500
    held_out: int = 500
    seeds: int = 3
    steps: int = 800
    batch_size: int = 64
    peak_lr: float = 1e-3
    human_weight: float = 0.1
    captioner_steps: int = 400
    filter_steps: int = 800
    judged_steps: int = 100
    fine_tune_lr: float = 5e-4
    threshold: float = 0.5  # of ITM, from which the filter keeps a text
    queue_size: int = 1024
    max_tokens: int = 26  # true captions have 24 at most, with the prompt
    side: int = 64
    seed: int = WORLD

    def __post_init__(self) -> None:
        for name in ("rows", "human", "held_out", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: give at least 1")
        if self.seeds < 2:
            raise InputError(f"seeds={self.seeds}: intervals need at least 2")


QUICK: Final = Design(
    start=Beginning(images=20, steps=2, batch_size=8, queue_size=16),
    rows=60,
    human=40,
    held_out=20,
    seeds=2,
    steps=4,
    batch_size=8,
    captioner_steps=3,
    filter_steps=3,
    judged_steps=2,
    threshold=0.0,  # what a filter of three steps says is no reason to keep nothing
    queue_size=16,
)
