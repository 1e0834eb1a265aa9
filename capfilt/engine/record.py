"""The rounds of a run folder: planning one, and remembering each that was run there.

So `status`, `retry`, `export`, `verify` and `gc` need nothing but the folder.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Final

from capfilt.engine.attempts import with_attempts
from capfilt.engine.plan import Plan, PlannedStage, compile_plan
from capfilt.errors import CodeNeededError, DamageError, InputError
from capfilt.fingerprint import fingerprint
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.sealed import sealed, unsealed
from capfilt.ledger.source import SourceManifest, load_manifest
from capfilt.models.recipe import ModelRef
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.round import Round
from capfilt.stages.contamination.stage import Contamination
from capfilt.store.location import Location

_ROUNDS: Final = "rounds"


@dataclass(frozen=True, slots=True)
class RecordedRound:
    """A round as a run folder remembers it: its number in the folder, its input and its name.

    The name is the same whenever the same round is run in the folder again.
    """

    number: int
    round: Round
    manifest_id: str
    name: str


def plan_round(recipe: Round, manifest: SourceManifest, ledger: Ledger) -> Plan:
    """Plan a round over the shards of an input, and over the attempts that retries added.

    Raises:
        PlanError: its stages do not fit together.
    """
    stages = recipe.stages()
    fetch_id = compile_plan(stages, manifest.shards).stages[0].id
    return grounded(compile_plan(stages, with_attempts(ledger, manifest.shards, fetch_id)), ledger)


def grounded(plan: Plan, ledger: Ledger) -> Plan:
    """Return a plan whose contamination stage knows where evaluation sets were seen."""

    def placed(planned: PlannedStage) -> PlannedStage:
        if not isinstance(planned.stage, Contamination):
            return planned
        seen = plan.producers.get("image_embedding", "")
        stage = dataclasses.replace(
            planned.stage,
            root=str(ledger.root),
            hashed_by=plan.producers["phash"],
            seen_by=seen,
        )
        return dataclasses.replace(planned, stage=stage)

    return dataclasses.replace(plan, stages=tuple(map(placed, plan.stages)))


def record_round(ledger: Ledger, recipe: Round, manifest_id: str) -> RecordedRound:
    """Remember that a round is run in this folder; the latest one is what other verbs act on."""
    last = _last_round(ledger)
    if last is not None and (last.round, last.manifest_id) == (recipe, manifest_id):
        return last
    files = round_files(ledger)
    number = int(files[-1].stem.partition("-")[0]) + 1 if files else 1
    plain = {"round": to_plain(recipe), "input": manifest_id}
    name = round_name(recipe, manifest_id)
    file = f"{_ROUNDS}/{number:06d}-{name}.json"
    ledger.publisher.publish_bytes(file, sealed(plain).encode("utf-8"))
    return RecordedRound(number, recipe, manifest_id, name)


def round_name(recipe: Round, manifest_id: str) -> str:
    """Return the name of a round over an input; how fast it was run is no part of it."""
    kept = recipe.export.kept
    return fingerprint((recipe, manifest_id, *([kept.stage] if kept else [])))


def fetched_models(recipe: Round) -> list[str]:
    """Return the models that are more than a folder: of a hub, with their commits, or adapted."""
    return [
        f"{role} {model.described}"
        for role, model in zip(("captioner", "matcher", "scorer"), recipe.models, strict=False)
        if model.commit is not None or model.base is not None
    ]


def moved_models(ledger: Ledger, recipe: Round) -> list[str]:
    """Return what to tell of models whose hub has moved since this folder's latest round.

    What decides whether anything is computed again is the digest of a model's files, as always.
    """
    last = _last_round(ledger)
    before = {model.name: model for model in last.round.models} if last is not None else {}
    return [
        _moved(before[model.name], model)
        for model in dict.fromkeys(recipe.models)
        if model.name in before and None not in (model.commit, before[model.name].commit)
        if model.commit != before[model.name].commit
    ]


def _moved(old: ModelRef, new: ModelRef) -> str:
    if old.digest == new.digest:
        then = "its files are the same, and nothing is computed again"
    else:
        then = (
            "its files differ, so what the old ones computed is computed again; to go on with the "
            f"old ones, give {old.name.partition('@')[0]}@{old.commit}"
        )
    return f"{new.name} has moved on its hub, {old.described} to {new.described}: {then}"


def recorded_rounds(ledger: Ledger) -> list[RecordedRound]:
    """Return the rounds of a run folder, oldest first."""
    return [load_record(file) for file in round_files(ledger)]


def _last_round(ledger: Ledger) -> RecordedRound | None:
    """Return the latest round, or None where there is none, or one of code that is not at hand."""
    files = round_files(ledger)
    with contextlib.suppress(CodeNeededError):
        return load_record(files[-1]) if files else None
    return None


def round_files(ledger: Ledger) -> list[Location]:
    """Return the files of the rounds of a run folder, oldest first."""
    return sorted((ledger.root / _ROUNDS).glob("*.json"))


def latest_round(ledger: Ledger) -> tuple[RecordedRound, SourceManifest]:
    """Return the round that was last run in a folder, with its input.

    Raises:
        InputError: no round was ever run there.
        DamageError: what was run there is recorded no more.
    """
    recorded = recorded_rounds(ledger)
    inputs = (source.STAGE, f"{source.KEPT_STAGE}-")  # a refused run has read its input
    if not recorded and any(not name.startswith(inputs) for name in ledger.stages()):
        raise DamageError(
            f"{ledger.root / _ROUNDS} says no more which round was run; `capfilt run` with its "
            "input and options says it again"
        )
    if not recorded:
        raise InputError(f"{ledger.root} is no run folder; `capfilt run` makes one")
    return recorded[-1], load_manifest(ledger, recorded[-1].manifest_id)


def load_record(file: Location) -> RecordedRound:
    """Read a record.

    Raises:
        DamageError: it is no record of a round that this version knows.
    """
    try:
        plain = unsealed(file.read_text(encoding="utf-8"))
        number, _, name = file.stem.partition("-")
        return RecordedRound(int(number), from_plain(Round, plain["round"]), plain["input"], name)
    except CodeNeededError:
        raise
    except (OSError, ValueError, KeyError, TypeError, InputError, DamageError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DamageError(
            f"{file} is no record of a round ({reason}); `capfilt run` with that round's input and "
            "options moves it away and makes it again"
        ) from error
