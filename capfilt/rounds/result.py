"""What the rounds came to: a table for people, `rounds.json` for machines."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.ledger.publish import Publisher, explained
from capfilt.rounds.steps import Cleaned, RoundsFolder, Scored, Step
from capfilt.train.process import Fitted

FILE: Final = "rounds.json"


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A round: its export (round 0: the raw web's), its three trainings, its models' scores.

    `captioner` and `matcher` are folders of models.
    """

    number: int
    cleaned: Cleaned
    pretrain: Fitted
    captioner: Fitted
    filter: Fitted
    scored: Scored | None
    captioner_folder: str
    matcher_folder: str

    @property
    def synthetic_share(self) -> float:
        """Share of the kept texts that a model wrote."""
        kept = self.cleaned.web_kept + self.cleaned.synthetic_kept
        return self.cleaned.synthetic_kept / kept if kept else 0.0

    def rejected(self, origin: str) -> float | None:
        """Return the share of the judged texts that were rejected; None where none was judged."""
        if self.number == 0:
            return None  # the raw web is judged by nobody
        judged: int = getattr(self.cleaned, f"{origin}_judged")
        kept: int = getattr(self.cleaned, f"{origin}_kept")
        return 1 - kept / judged if judged else None

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the round for machines."""
        scores = self.scored
        return {
            "round": self.number,
            "dataset": self.cleaned.dataset,
            "digest": self.cleaned.digest,
            "pairs": self.cleaned.rows,
            "noise_rejected": {origin: self.rejected(origin) for origin in ("web", "synthetic")},
            "synthetic_share": self.synthetic_share,
            "losses": {
                "pretrain": self.pretrain.last,
                "captioner": self.captioner.last,
                "filter": self.filter.last,
            },
            "models": {"captioner": self.captioner_folder, "matcher": self.matcher_folder},
            "held_out": None
            if scores is None
            else {
                "TR@1": scores.tr1,
                "IR@1": scores.ir1,
                "CIDEr": scores.cider,
                "BLEU@4": scores.bleu4,
            },
        }

    def cells(self) -> list[str]:
        """Return the line of the table."""
        losses = [fit.last["loss"] for fit in (self.pretrain, self.captioner, self.filter)]
        scores = self.scored
        held_out = [] if scores is None else [scores.tr1, scores.ir1, scores.cider]
        return [
            str(self.number),
            f"{self.cleaned.rows:,}",
            *(_percent(self.rejected(origin)) for origin in ("web", "synthetic")),
            _percent(self.synthetic_share),
            *(f"{loss:.3f}" for loss in losses),
            *(f"{100 * score:.1f}" for score in held_out),
        ]


@dataclass(frozen=True, slots=True)
class RoundsResult:
    """All rounds, and the folder that they lie in."""

    folder: str
    rounds: list[RoundResult]

    def text(self) -> str:
        """Return the table and where the last models are."""
        heads = [
            *("round", "pairs", "web rejected", "synthetic rejected", "synthetic"),
            *("pre-train loss", "captioner loss", "filter loss"),
            *(("TR@1", "IR@1", "CIDEr") if self.rounds[-1].scored is not None else ()),
        ]
        lines = [heads, *(each.cells() for each in self.rounds)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        ]
        last = self.rounds[-1]
        where = [
            f"captioner: {self.folder}/{last.captioner_folder}",
            f"matcher:   {self.folder}/{last.matcher_folder}",
            f"dataset:   {self.folder}/{last.cleaned.dataset}",
        ]
        return "\n".join([*table, "", *where])

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines; folders are relative to `out`."""
        return {"out": self.folder, "rounds": [each.plain() for each in self.rounds]}


def summary(place: RoundsFolder, steps: Sequence[Step]) -> RoundsResult:
    """Put the outcomes of all steps together; every one must be done."""
    numbers = sorted({step.round for step in steps})
    return RoundsResult(
        str(place.root), [_round(place, [s for s in steps if s.round == n]) for n in numbers]
    )


def _round(place: RoundsFolder, steps: Sequence[Step]) -> RoundResult:
    by_kind = {step.kind: step for step in steps}
    number = steps[0].round
    cleaned = place.done(by_kind.get("raw") or by_kind["clean"], Cleaned)
    pretrain, captioner, judge = (
        place.done(by_kind[kind], Fitted) for kind in ("pretrain", "captioner", "filter")
    )
    scored = place.done(by_kind["evaluate"], Scored) if "evaluate" in by_kind else None
    captioner_folder, matcher_folder = models_of(number)
    return RoundResult(
        number, cleaned, pretrain, captioner, judge, scored, captioner_folder, matcher_folder
    )


def models_of(number: int) -> tuple[str, str]:
    """Return where a round's captioner and matcher lie, below the folder of all rounds."""
    return f"{number}-captioner/model/captioner", f"{number}-filter/model/matcher"


def write_summary(root: Path, found: RoundsResult) -> None:
    """Write `rounds.json` whole, where it is not there as it should be.

    It is the one file of the loop that another call may replace: for more rounds, or for scores.
    """
    file = root / FILE
    plain = {"rounds": [each.plain() for each in found.rounds]}
    text = json.dumps(plain, indent=1) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return
    with Publisher(root).scratch_dir() as scratch, explained(file):
        draft = scratch / FILE
        with draft.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
