"""What rounds would do: which steps there are, what is missing of each, and roughly its cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from capfilt.engine.cost import compute_rate, estimate
from capfilt.engine.record import plan_round
from capfilt.ledger.ledger import Ledger
from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import ModelRef
from capfilt.recipe.round import Round
from capfilt.rounds.checks import CheckedRounds
from capfilt.rounds.result import models_of
from capfilt.rounds.steps import OUTCOMES, RUN, Cleaned, Step
from capfilt.train.cost import seconds_a_step, step_flops
from capfilt.train.options import config_of
from capfilt.train.plan import TrainPlan
from capfilt.train.process import Fitted
from capfilt.wording import counted

State = Literal["done", "begun", "missing"]
_STAND_IN: Final = "a model like --like"


@dataclass(frozen=True, slots=True)
class StepCost:
    """A step: what is left of it, in rows times stages or in training steps, and the seconds.

    `seconds` is None where nothing is known: a download before its first shard, an evaluation.
    `measured` says that the seconds come from what was done here, not from arithmetic.
    """

    name: str
    state: State
    left: int
    unit: Literal["rows", "steps", ""]
    seconds: float | None
    measured: bool

    def line(self) -> str:
        """Return one line for a person."""
        if self.state == "done":
            return f"{self.name:<14} done"
        left = f"{self.left:,} {self.unit} to do" if self.unit else "to do"
        if self.seconds is None:
            return f"{self.name:<14} {self.state}, {left}, cost unknown yet"
        how = "measured" if self.measured else "by arithmetic"
        return f"{self.name:<14} {self.state}, {left}, about {_time(self.seconds)} ({how})"


@dataclass(frozen=True, slots=True)
class RoundsPlan:
    """What `capfilt rounds` would do."""

    folder: str
    rows: int
    steps: list[StepCost]

    def text(self) -> str:
        """Return a line a step."""
        total = sum(step.seconds or 0.0 for step in self.steps)
        return "\n".join(
            [
                f"{self.folder}: {counted(self.rows, 'row')} of the web, "
                + counted(len(self.steps), "step"),
                *(step.line() for step in self.steps),
                f"in all about {_time(total)} of this machine, besides what is unknown",
            ]
        )

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the plan for machines."""
        from dataclasses import asdict

        return {"out": self.folder, "rows": self.rows, "steps": [asdict(s) for s in self.steps]}


def cost_of_rounds(checked: CheckedRounds) -> RoundsPlan:
    """Say what is missing of every step; writes nothing."""
    steps = [_cost(checked, step) for step in checked.steps]
    return RoundsPlan(str(checked.place.root), checked.manifest.rows, steps)


def _cost(checked: CheckedRounds, step: Step) -> StepCost:
    if checked.place.outcome(step, OUTCOMES[step.kind]) is not None:
        return StepCost(step.name, "done", 0, "", 0.0, True)
    match step.kind:
        case "raw" | "clean":
            return _cleaning(checked, step)
        case "pretrain":
            return _training(checked, step, checked.rounds.pretrain)
        case "captioner":
            return _training(checked, step, checked.rounds.captioner)
        case "filter":
            return _training(checked, step, checked.rounds.filter)
        case "evaluate":
            return StepCost(step.name, "missing", 0, "", None, False)


def _cleaning(checked: CheckedRounds, step: Step) -> StepCost:
    ledger = Ledger(checked.place.root / RUN)
    plan = plan_round(_recipe(checked, step), checked.manifest, ledger)
    lines = [estimate(ledger, plan, entry) for entry in plan.stages]
    known = [line["estimated_seconds"] for line in lines]
    begun = any(line["shards_missing"] < line["shards"] for line in lines)
    seconds = [each for each in known if each is not None]
    return StepCost(
        step.name,
        "begun" if begun else "missing",
        max(line["rows_missing"] for line in lines),
        "rows",
        sum(seconds) if seconds else None,
        all(line["measured"] for line in lines),
    )


def _recipe(checked: CheckedRounds, step: Step) -> Round:
    """Return a cleaning's recipe; models that are not trained yet cost what --like would."""
    rounds = checked.rounds
    if step.kind == "raw":
        return rounds.raw()
    if not step.reads:
        return rounds.first
    captioner, matcher = (checked.place.root / name for name in models_of(step.round - 1))
    return rounds.first.next(
        captioner=resolve_model(str(captioner), "captioner")
        if captioner.is_dir()
        else _stand_in(checked.start),
        matcher=resolve_model(str(matcher), "matcher")
        if matcher.is_dir()
        else _stand_in(checked.start),
    )


def _stand_in(start: Path) -> ModelRef:
    folders = [start, *(start / name for name in ("med", "captioner", "matcher"))]
    folder = next(each for each in folders if (each / "config.json").exists())
    return ModelRef(digest=_STAND_IN, name=_STAND_IN, path=str(folder))


def _training(checked: CheckedRounds, step: Step, plan: TrainPlan) -> StepCost:
    samples = checked.human_samples
    if step.kind == "pretrain":
        samples += _web_samples(checked, step)
    recipe = plan.recipe_for(samples, checked.start)
    folder = checked.place.root / step.name
    done, rate = seconds_a_step(folder)
    rate = rate or _rate_of_others(checked, step)
    left = recipe.optim.steps - done
    measured = rate is not None
    if rate is None:
        rate = step_flops(recipe, config_of(checked.start)) / compute_rate()
    state: State = "begun" if done else "missing"
    return StepCost(step.name, state, left, "steps", round(left * rate, 1), measured)


def _web_samples(checked: CheckedRounds, step: Step) -> int:
    """Return the pairs of the export that a pre-training reads; before it is there, all rows."""
    (source,) = (each for each in checked.steps if each.name == step.reads[0])
    cleaned = checked.place.outcome(source, Cleaned)
    return checked.manifest.rows if cleaned is None else cleaned.rows


def _rate_of_others(checked: CheckedRounds, step: Step) -> float | None:
    """Return seconds a step of the same training in another round."""
    for other in checked.steps:
        if other.kind == step.kind:
            fitted = checked.place.outcome(other, Fitted)
            if fitted is not None and fitted.seconds_a_step is not None:
                return fitted.seconds_a_step
    return None


def _time(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
