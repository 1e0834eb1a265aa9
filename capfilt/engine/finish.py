"""The end of a round: the funnel, the export, and the report that people look at."""

import functools
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from capfilt import __version__
from capfilt.engine.exports import place_of, record_export, recorded_at
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.record import round_name
from capfilt.engine.status import run_outcome
from capfilt.errors import InputError
from capfilt.export import Provenance, export_dataset
from capfilt.export.claim import check_claim, claim
from capfilt.export.config import LAYOUT, READS
from capfilt.export.kept import kept_rows
from capfilt.export.scores import scored
from capfilt.fingerprint import fingerprint
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.publish import Publisher, check_writable
from capfilt.ledger.source import SourceManifest
from capfilt.ledger.tally import Outcome
from capfilt.plain import published_plain
from capfilt.progress import Progress, Say
from capfilt.recipe.round import Round
from capfilt.report.failures import why_nothing
from capfilt.report.funnel import Funnel, count_funnel
from capfilt.report.page import write_page
from capfilt.stages.policies.presets import itm_threshold
from capfilt.store.location import Location, is_address
from capfilt.wording import counted

EXPORT_PREFIX: Final = "export-"


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
    read = plan.identity_of([*READS, *scored(plan.producers)])
    parts = (LAYOUT, read, recipe.export, columns, plan.shards)
    return f"{EXPORT_PREFIX}{fingerprint(parts)}"


def finish(
    reader: RunReader,
    recipe: Round,
    manifest: SourceManifest,
    to: Location | None,
    progress: Progress,
    say: Say,
    of: str = "",
    replace: bool = False,
) -> Finished:
    """Count, export (to `to`, or into the run folder), write the report and record the export.

    `of` names the round that this one is an export of; "": it is the run's own. With `replace`,
    another or a damaged export is replaced as a whole.

    Raises:
        DamageError: the counts do not add up to the input, or a file of the export is damaged.
        InputError: the folder holds another export, or something else.
        StorageError: the folder cannot be written.
    """
    outcome = run_outcome(reader.ledger, reader.plan)
    marked = "image_in" in reader.plan.producers
    funnel = count_funnel(reader, manifest.rows, outcome.failed, marked)
    if not funnel.images_kept and why_nothing(outcome) is None:
        say("warning: the policy keeps no text; the dataset is empty")
    kept, ledger = recipe.export.kept, reader.ledger
    name = export_name(reader.plan, recipe)
    publisher = Publisher(_place(to, ledger, name))
    root = publisher.root
    last = recorded_at(ledger, root)
    export = name.removeprefix(EXPORT_PREFIX)
    claim(publisher, export, replace, _expected(ledger, root, name))
    texts = funnel.web_kept + funnel.synthetic_kept
    total = texts if recipe.export.format.rows == "texts" else funnel.images_kept
    with progress("export", total) as told:
        written = export_dataset(
            reader,
            publisher,
            recipe.export,
            _provenance(reader.plan, recipe, manifest, funnel),
            recipe.fetch.resize.encode_format,
            told,
            functools.partial(kept_rows, reader.ledger, kept) if kept else None,
            export,
            last.files if last and last.export == export else (),
            scored(reader.plan.producers),
        )
    of = of or round_name(recipe, manifest.id)
    record_export(ledger, reader.plan, recipe, manifest.id, of, root, written)
    threshold = itm_threshold(recipe.select)
    page = write_page(reader, ledger.publisher, name, funnel, threshold)
    return Finished(str(root), str(page), written.rows, written.digest, funnel, outcome)


def check_place(
    plan: Plan, recipe: Round, ledger: Ledger, to: Location | None, replace: bool
) -> None:
    """Refuse a folder that `finish` would refuse, before any work.

    Raises:
        InputError: it holds another export, or something else.
        DamageError: what it holds cannot be told any more.
        StorageError: it cannot be written.
    """
    name = export_name(plan, recipe)
    root = _place(to, ledger, name)
    check_claim(root, name.removeprefix(EXPORT_PREFIX), replace, _expected(ledger, root, name))
    check_writable(root)


def _expected(ledger: Ledger, root: Location, name: str) -> str:
    """Return which export the run knows to lie in a folder; "" for none."""
    if place_of(ledger, root) == name:
        return name.removeprefix(EXPORT_PREFIX)
    last = recorded_at(ledger, root)
    return last.export if last else ""


def _place(to: Location | None, ledger: Ledger, name: str) -> Location:
    """Return the folder of an export.

    Raises:
        InputError: it is one that capfilt names itself, after another export.
    """
    if to is None:
        return ledger.root / name
    place = place_of(ledger, to)
    if place != name and "/" not in place and place.startswith(EXPORT_PREFIX):
        raise InputError(f"--to {to}: folders {EXPORT_PREFIX}… of a run are named by capfilt")
    return to


def _provenance(plan: Plan, recipe: Round, manifest: SourceManifest, funnel: Funnel) -> Provenance:
    end = ": " if is_address(manifest.described) else ":"
    name = PurePath(manifest.described.partition(end)[0]).name
    return Provenance(
        capfilt=__version__,
        source=f"{counted(manifest.rows, 'row')}, {name}",
        recipe=published_plain(recipe),
        stages=tuple(planned.id for planned in plan.stages),
        funnel=tuple(funnel.lines()),
        evaluation=_evaluation(recipe, funnel),
    )


def _evaluation(recipe: Round, funnel: Funnel) -> str:
    """Say which evaluation sets were looked for, and what of them was found."""
    if recipe.contamination is None:
        return ""
    names = ", ".join(each.name for each in recipe.contamination.sets)
    found = funnel.marked or "nothing of the input stands in them"
    done = ", and are left out" if funnel.marked and recipe.drop_contaminated else ""
    return f"{names}; {found}{done}"
