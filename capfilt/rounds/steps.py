"""The steps of the loop: what each is called, what it reads, and what its result depends on.

A step's id is a hash of its own configuration and of the ids of the steps that it reads from, as a
stage's is. The first call writes every step down; a later call with other ids is another loop, and
is refused. A step that is done has an outcome beside it, written once and never changed:

    OUT/steps/1-pretrain.json       what the step is
    OUT/outcomes/1-pretrain.json    what it came to
    OUT/run                         the run folder of all cleanings
    OUT/1-pretrain                  a training: checkpoints, metrics, model
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from capfilt.errors import DamageError, InputError
from capfilt.fingerprint import fingerprint
from capfilt.ledger.publish import Publisher
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.round import Round
from capfilt.rounds.config import UNTRAINED, Rounds
from capfilt.train.process import Fitted

Kind = Literal["raw", "clean", "pretrain", "captioner", "filter", "evaluate"]
RUN: Final = "run"


@dataclass(frozen=True, slots=True)
class Facts:
    """Digests of what the user gave: the input's rows, the start, the human pairs, the held-out."""

    input: str
    start: str
    human: tuple[str, ...]
    held_out: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a step's result depends on, by the name that a user knows it by."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `reads` names the steps whose results it reads."""

    name: str
    round: int
    kind: Kind
    reads: tuple[str, ...]
    parts: tuple[Part, ...]
    id: str = ""

    def title(self) -> str:
        """Return what a person reads."""
        return f"round {self.round}: {self.kind}"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """An export: where, its rows and digest, and the texts that were judged and kept."""

    dataset: str  # below the folder of the loop
    rows: int
    digest: str
    web_judged: int
    web_kept: int
    synthetic_judged: int
    synthetic_kept: int


@dataclass(frozen=True, slots=True)
class Scored:
    """Shares in [0, 1] on held-out pairs: retrieval re-ranked by ITM, and captions' CIDEr, BLEU."""

    tr1: float
    ir1: float
    cider: float
    bleu4: float


Outcome = Cleaned | Fitted | Scored
AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)
OUTCOMES: Final[dict[Kind, type[Cleaned] | type[Fitted] | type[Scored]]] = {
    "raw": Cleaned,
    "clean": Cleaned,
    "pretrain": Fitted,
    "captioner": Fitted,
    "filter": Fitted,
    "evaluate": Scored,
}


def steps_of(rounds: Rounds, facts: Facts) -> list[Step]:
    """Return the steps in the order in which they are done."""
    found: list[Step] = []
    ids: dict[str, str] = {}
    for step in _unidentified(rounds, facts):
        upstream = tuple(ids[name] for name in step.reads)
        ids[step.name] = fingerprint((step.kind, step.parts, upstream))
        found.append(replace(step, id=ids[step.name]))
    return found


def _unidentified(rounds: Rounds, facts: Facts) -> Iterator[Step]:
    given = Part("input", facts.input)
    if rounds.begin == "raw":
        yield Step("raw", 0, "raw", (), (given, _recipe(rounds.raw())))
        yield from _models(rounds, facts, 0, "raw")
    for number in range(1, rounds.count + 1):
        own = number == 1 and rounds.begin == "models"
        before = (f"{number - 1}-captioner", f"{number - 1}-filter")
        recipe = rounds.first if own else rounds.first.next(UNTRAINED, UNTRAINED)
        name = f"{number}-clean"
        yield Step(name, number, "clean", () if own else before, (given, _recipe(recipe)))
        yield from _models(rounds, facts, number, name)


def _models(rounds: Rounds, facts: Facts, number: int, export: str) -> Iterator[Step]:
    """Yield a round's three trainings, and the evaluation of what comes out."""
    weights = fingerprint((rounds.web_weight, tuple(one.weight for one in rounds.human)))
    human = Part("human pairs (--human)", fingerprint((facts.human, weights)))
    start = Part("start (--like, --init)", facts.start)
    names = [f"{number}-{plan.kind}" for plan in rounds.trainings]
    for plan, name in zip(rounds.trainings, names, strict=True):
        recipe = Part("training options", fingerprint(plan))
        if plan.kind == "pretrain":
            yield Step(name, number, plan.kind, (export,), (start, recipe, human))
        else:
            yield Step(name, number, plan.kind, (names[0],), (recipe, human))
    if facts.held_out is not None:
        digest = fingerprint((facts.held_out, rounds.filter.precision))
        parts = (Part("held-out pairs (--held-out)", digest),)
        yield Step(f"{number}-evaluate", number, "evaluate", (names[1], names[2]), parts)


def _recipe(recipe: Round) -> Part:
    # Stages and export alone: how many rows lie in a shard changes no result, nor does a model
    # that a policy never asks.
    return Part("cleaning options", fingerprint((recipe.stages(), recipe.export)))


@dataclass(frozen=True, slots=True)
class RoundsFolder:
    """The folder of a loop: what is written down there of its steps."""

    root: Path

    def check(self, steps: Sequence[Step]) -> None:
        """Refuse a folder of other rounds.

        Raises:
            InputError: a step of that name has another id; the message says what differs.
            DamageError: what is written down cannot be read.
        """
        for step in steps:
            plain = self._read("steps", step.name)
            if plain is None:
                continue
            other = from_plain(Step, plain)
            if other.id != step.id:
                raise InputError(self._differs(step, other))

    def record(self, steps: Sequence[Step]) -> None:
        """Write down every step that is not yet."""
        for step in steps:
            self._write("steps", step.name, to_plain(step))

    def outcome(self, step: Step, kind: type[AnyOutcome]) -> AnyOutcome | None:
        """Return what a step came to, or None where it is not done."""
        plain = self._read("outcomes", step.name)
        return None if plain is None else from_plain(kind, plain)

    def done(self, step: Step, kind: type[AnyOutcome]) -> AnyOutcome:
        """Return what a step came to.

        Raises:
            DamageError: it is not done, though what comes after it is.
        """
        found = self.outcome(step, kind)
        if found is None:
            raise DamageError(f"{self.root} lacks the outcome of {step.name}; run again")
        return found

    def keep(self, step: Step, outcome: Outcome) -> None:
        """Write down what a step came to."""
        self._write("outcomes", step.name, to_plain(outcome))

    def _differs(self, step: Step, other: Step) -> str:
        mine = {part.name: part.digest for part in step.parts}
        theirs = {part.name: part.digest for part in other.parts}
        names = [name for name, digest in mine.items() if theirs.get(name) != digest]
        what = " and ".join(names) if names else f"what it reads ({', '.join(step.reads)})"
        return (
            f"{self.root} holds other rounds: of step {step.name}, {what} differs. Give the same "
            "as before, or another --out"
        )

    def _read(self, kind: str, name: str) -> Any:  # JSON
        file = self.root / kind / f"{name}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamageError(f"{file} cannot be read ({error}); remove it") from error

    def _write(self, kind: str, name: str, plain: object) -> None:
        relative = f"{kind}/{name}.json"
        if not (self.root / relative).exists():
            text = json.dumps(plain, indent=1) + "\n"
            Publisher(self.root).publish_bytes(relative, text.encode("utf-8"))
