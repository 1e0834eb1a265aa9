"""The end of a round: the funnel, the export, and the report that people look at."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capfilt import __version__
from capfilt.engine.passes import Progress
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.status import run_outcome
from capfilt.export import Provenance, export_dataset
from capfilt.export.config import READS
from capfilt.export.kept import kept_rows
from capfilt.fingerprint import fingerprint
from capfilt.ledger.publish import Publisher
from capfilt.ledger.source import SourceManifest
from capfilt.ledger.tally import Outcome
from capfilt.plain import to_plain
from capfilt.recipe.round import Round
from capfilt.report.failures import why_nothing
from capfilt.report.funnel import Funnel, count_funnel
from capfilt.report.page import write_page
from capfilt.stages.policies.presets import itm_threshold
from capfilt.wording import counted


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finished round left: where the dataset lies, its rows and digest, and the funnel."""

    dataset: str
    report: str
    rows: int
    digest: str
    funnel: Funnel
    outcome: Outcome = Outcome()

    def text(self) -> str:
        """Return what a person reads at the end."""
        return (
            f"{self.funnel.text()}\n\n{counted(self.rows, 'pair')} kept: {self.dataset}\n"
            f"look at them:  {self.report}\ndigest {self.digest}"
        )

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        return {
            "dataset": self.dataset,
            "report": self.report,
            "rows": self.rows,
            "digest": self.digest,
            "funnel": self.funnel.plain(),
        }


def export_name(plan: Plan, recipe: Round) -> str:
    """Return the folder of a round's export: `export-` and a hash of all that it depends on."""
    kept = recipe.export.kept
    columns = [*recipe.export.columns.names, *([kept.stage] if kept else [])]
    parts = (plan.identity_of(READS), recipe.export, columns, plan.shards)
    return f"export-{fingerprint(parts)}"


def finish(
    reader: RunReader,
    recipe: Round,
    manifest: SourceManifest,
    to: Path | None,
    progress: Progress,
    say: Callable[[str], None],
) -> Finished:
    """Count, export (to `to`, or into the run folder) and write the report.

    Raises:
        DamageError: the counts do not add up to the input.
        StorageError: the folder cannot be written.
    """
    outcome = run_outcome(reader.ledger, reader.plan)
    funnel = count_funnel(reader, manifest.rows, outcome.failed)
    if not funnel.images_kept and why_nothing(outcome) is None:
        say("warning: the policy keeps no text; the dataset is empty")
    kept = recipe.export.kept
    root = to or reader.ledger.root / export_name(reader.plan, recipe)
    with progress("export", funnel.web_kept + funnel.synthetic_kept) as told:
        written = export_dataset(
            reader,
            Publisher(root),
            recipe.export,
            _provenance(reader.plan, recipe, manifest, funnel),
            recipe.fetch.resize.encode_format,
            told,
            functools.partial(kept_rows, reader.ledger, kept) if kept else None,
        )
    threshold = itm_threshold(recipe.select)
    page = write_page(reader, reader.ledger.publisher, root.name, funnel, threshold)
    return Finished(str(root), str(page), written.rows, written.digest, funnel, outcome)


def _provenance(plan: Plan, recipe: Round, manifest: SourceManifest, funnel: Funnel) -> Provenance:
    name = Path(manifest.described.partition(":")[0]).name
    return Provenance(
        capfilt=__version__,
        source=f"{counted(manifest.rows, 'row')}, {name}",
        recipe=json.dumps(_without_places(to_plain(recipe)), sort_keys=True),
        stages=tuple(planned.id for planned in plan.planned),
        funnel=tuple(funnel.lines()),
    )


def _without_places(plain: Any) -> Any:  # a JSON tree
    """Drop where a model lay and what only changes speed: the digest says which model it was."""
    speed = {"path", "device", "threads", "timeout", "total_timeout"}
    if isinstance(plain, dict):
        return {k: _without_places(v) for k, v in plain.items() if k not in speed}
    if isinstance(plain, list):
        return [_without_places(item) for item in plain]
    return plain
