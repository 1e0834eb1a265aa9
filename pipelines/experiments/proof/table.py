"""The experiment's results as tables, with 95 % intervals over seeds."""

import json
import math
import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from pipelines.experiments.proof.design import (
    ARMS,
    BOTH,
    CAPTIONED,
    CLEANINGS,
    FILTERED,
    RAW,
    Design,
)
from pipelines.experiments.proof.judging import Kept, Worth
from pipelines.experiments.proof.tasks import judging_of

# Student's t at 97.5 %, by degrees of freedom from 1; beyond, the normal's.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
MEASURES: Final = {
    "tr1": "TR@1 (ITM)",
    "ir1": "IR@1 (ITM)",
    "tr1_itc": "TR@1 (ITC)",
    "ir1_itc": "IR@1 (ITC)",
    "cider": "CIDEr",
    "true": "true captions",
    "zero_cider": "CIDEr, zero-shot",
    "zero_true": "true, zero-shot",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the half width of its 95 % interval (Student's t over seeds)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        """Return the interval of two or more values."""
        degrees = len(values) - 1
        t = _T[degrees - 1] if degrees <= len(_T) else 1.96
        spread = statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.fmean(values), t * spread)

    def above(self, other: "Interval") -> bool:
        """Say whether all of this interval lies above the other."""
        return self.mean - self.half > other.mean + other.half

    def text(self) -> str:
        """Return it in per cent."""
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a policy kept of the web, and the shares that it rejected (None: nothing judged)."""

    kept: Kept
    rejected_web: float | None = None
    rejected_synthetic: float | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """By arm: what was kept, and each measure's interval over seeds."""

    design: Design
    cleaned: dict[str, Cleaned]
    measured: dict[str, dict[str, Interval]]


def results_of(root: Path, design: Design) -> Results:
    """Read the records of a finished experiment."""
    cleaned: dict[str, Cleaned] = {}
    tasks = ["download", *(f"clean-{how.name}" for how in CLEANINGS)]
    for task in tasks:
        for name, plain in _record(root, task).items():
            shares = {key: plain.get(key) for key in ("rejected_web", "rejected_synthetic")}
            cleaned[name] = Cleaned(Kept(**plain["kept"]), **shares)
    measured = {}
    for arm in ARMS:
        worths = [Worth(**_record(root, judging_of(arm, s))) for s in range(design.seeds)]
        measured[arm.name] = {
            field.name: Interval.of([getattr(worth, field.name) for worth in worths])
            for field in fields(Worth)
        }
    return Results(design, cleaned, measured)


def told(results: Results) -> str:
    """Return the tables as Markdown, and what the intervals say of the paper's ordering."""
    parts = [_arms(results), _cleanings(results), _orderings(results)]
    return "\n\n".join(parts) + "\n"


def _arms(results: Results) -> str:
    shown = ("tr1", "ir1", "tr1_itc", "ir1_itc", "cider", "true", "zero_true")
    head = ["pre-trained on", "texts", *(MEASURES[name] for name in shown)]
    rows = []
    for arm in ARMS:
        kept = (results.cleaned.get(arm.name) or results.cleaned[RAW.name]).kept
        texts = (
            f"{arm.copies} × {kept.web:,}" if arm.copies > 1 else f"{kept.web + kept.synthetic:,}"
        )
        name = f"{arm.name} ({arm.paper})" if arm.paper else arm.name
        own = results.measured[arm.name]
        rows.append([name, texts, *(own[measure].text() for measure in shown)])
    return _table(head, rows)


def _cleanings(results: Results) -> str:
    head = ["cleaning", "web kept", "true", "synthetic kept", "true", "all kept true", "rejected"]
    rows = []
    for arm in ARMS:
        if arm.name not in results.cleaned:
            continue
        one = results.cleaned[arm.name]
        kept = one.kept
        rows.append(
            [
                arm.name,
                f"{kept.web:,}",
                _share(kept.web_true if kept.web else None),
                f"{kept.synthetic:,}",
                _share(kept.synthetic_true if kept.synthetic else None),
                _share(kept.true),
                f"web {_share(one.rejected_web)}, synthetic {_share(one.rejected_synthetic)}",
            ]
        )
    return _table(head, rows)


def _orderings(results: Results) -> str:
    """Say of every measure which of Table 1's comparisons hold beyond the intervals."""
    pairs = [(RAW, FILTERED), (RAW, CAPTIONED), (FILTERED, BOTH), (CAPTIONED, BOTH), (RAW, BOTH)]
    head = ["measure", *(f"{worse.name} < {better.name}" for worse, better in pairs)]
    rows = []
    for name, title in MEASURES.items():
        own = {arm.name: results.measured[arm.name][name] for arm in ARMS}
        rows.append([title, *(_verdict(own[w.name], own[b.name]) for w, b in pairs)])
    return _table(head, rows)


def _verdict(worse: Interval, better: Interval) -> str:
    if better.above(worse):
        return "yes"
    if worse.above(better):
        return "the reverse"
    return "yes, intervals overlap" if better.mean > worse.mean else "no, intervals overlap"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _record(root: Path, task: str) -> dict[str, Any]:  # JSON
    record: dict[str, Any] = json.loads((root / "tasks" / f"{task}.json").read_text("utf-8"))
    return record
