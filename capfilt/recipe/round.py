"""A round: source, stages and export, and how one is run, resumed and looked at.

`Round` is the whole configuration, frozen; `round.next(captioner=…, matcher=…)` is the next
bootstrap round. A run folder remembers each round that was run in it, so `status`, `retry`,
`export`, `verify` and `gc` need nothing but the folder.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capfilt.engine.attempts import with_attempts
from capfilt.engine.plan import Plan, compile_plan
from capfilt.errors import DamageError, InputError
from capfilt.export import ExportConfig
from capfilt.fingerprint import fingerprint
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import SourceManifest, load_manifest
from capfilt.models.recipe import FilterRecipe, ModelRef, Precision, ScorerRecipe
from capfilt.option import WORK, check_options, option
from capfilt.plain import from_plain, to_plain
from capfilt.stage import BarrierStage, Stage
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.dedup.phash import Phash
from capfilt.stages.download import Download
from capfilt.stages.match import MatchCaptions, MatchWeb, ScoreCaptions, ScoreWeb
from capfilt.stages.policies.blip import Select
from capfilt.stages.policies.presets import Policy
from capfilt.stages.policies.raw import RawWeb, Unjudged

_ROUNDS: Final = "rounds"


@dataclass(frozen=True, slots=True)
class Round:
    """One CapFilt round (BLIP, section 3.3).

    `dedup` None: near-duplicates are kept. `scorer`: for policies that rank by another model. The
    policy `raw` asks no model: captioner, filter and scorer are then as good as absent.
    """

    caption: Caption
    matching: FilterRecipe
    fetch: Download = Download()
    dedup: Dedup | None = Dedup()
    select: Policy = Select()
    export: ExportConfig = ExportConfig()
    shard_rows: int = option(1000, "Rows of a shard", panel=WORK, at_least=1)
    scorer: ScorerRecipe | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)

    def next(self, captioner: ModelRef, matcher: ModelRef) -> "Round":
        """Return the next bootstrap round: the same recipe with newly trained models."""
        return dataclasses.replace(
            self,
            caption=dataclasses.replace(self.caption, model=captioner),
            matching=dataclasses.replace(self.matching, model=matcher),
        )

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """All models of the round."""
        if self.raw:
            return ()
        scorer = () if self.scorer is None else (self.scorer.model,)
        return (self.caption.model, self.matching.model, *scorer)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precision of each of `models`."""
        if self.raw:
            return ()
        scorer = () if self.scorer is None else (self.scorer.precision,)
        return (self.caption.precision, self.matching.precision, *scorer)

    @property
    def raw(self) -> bool:
        """Whether the web's texts are taken as they are."""
        return isinstance(self.select, RawWeb)

    def stages(self) -> list[Stage | BarrierStage]:
        """Return the stages in order."""
        stages: list[Stage | BarrierStage] = [self.fetch]
        if self.dedup is not None and self.dedup.hashes:
            stages.append(Phash())
        stages += [Unjudged()] if self.raw else self._models()
        if self.dedup is not None:
            stages.append(self.dedup)
        return [*stages, dataclasses.replace(self.select, dedup=self.dedup is not None)]

    def _models(self) -> list[Stage]:
        how, second = self.matching, self.scorer
        own = None if type(how) is FilterRecipe else how
        stages: list[Stage] = [
            self.caption,
            MatchWeb(how.model, how.itm_token, how.precision, recipe=own),
            MatchCaptions(how.model, how.itm_token, how.precision, recipe=own),
        ]
        if second is not None:
            stages.append(ScoreWeb(second.model, precision=second.precision))
            stages.append(ScoreCaptions(second.model, precision=second.precision))
        return stages


@dataclass(frozen=True, slots=True)
class RecordedRound:
    """A round as a run folder remembers it: its number in the folder, and its input."""

    number: int
    round: Round
    manifest_id: str


def plan_round(recipe: Round, manifest: SourceManifest, ledger: Ledger) -> Plan:
    """Plan a round over the shards of an input, and over the attempts that retries added.

    Raises:
        PlanError: its stages do not fit together.
    """
    stages = recipe.stages()
    fetch_id = compile_plan(stages, manifest.shards).planned[0].id
    return compile_plan(stages, with_attempts(ledger, manifest.shards, fetch_id))


def record_round(ledger: Ledger, recipe: Round, manifest_id: str) -> RecordedRound:
    """Remember that a round is run in this folder; the latest one is what other verbs act on."""
    recorded = recorded_rounds(ledger)
    if recorded and (recorded[-1].round, recorded[-1].manifest_id) == (recipe, manifest_id):
        return recorded[-1]
    number = recorded[-1].number + 1 if recorded else 1
    plain = {"round": to_plain(recipe), "input": manifest_id}
    name = f"{_ROUNDS}/{number:06d}-{fingerprint((recipe, manifest_id))}.json"
    text = json.dumps(plain, indent=1).encode("utf-8")
    ledger.publisher.publish_bytes(name, text)
    return RecordedRound(number, recipe, manifest_id)


def recorded_rounds(ledger: Ledger) -> list[RecordedRound]:
    """Return the rounds of a run folder, oldest first."""
    files = sorted((ledger.root / _ROUNDS).glob("*.json"))
    return [_load_record(file) for file in files]


def latest_round(ledger: Ledger) -> tuple[RecordedRound, SourceManifest]:
    """Return the round that was last run in a folder, with its input.

    Raises:
        InputError: no round was ever run there.
    """
    recorded = recorded_rounds(ledger)
    if not recorded:
        raise InputError(f"{ledger.root} is no run folder; `capfilt run` makes one")
    return recorded[-1], load_manifest(ledger, recorded[-1].manifest_id)


def _load_record(file: Path) -> RecordedRound:
    """Read a record.

    Raises:
        DamageError: it is no record of a round that this version knows.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        number = int(file.name.partition("-")[0])
        return RecordedRound(number, from_plain(Round, plain["round"]), plain["input"])
    except (ValueError, KeyError, TypeError, InputError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamageError(f"{file} is no record of a round ({reason}); remove it") from error
