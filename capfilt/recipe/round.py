"""A round as a configuration: its stages, its policy and its export.

`round.next(captioner=…, matcher=…)` is the next bootstrap round.
"""

import dataclasses
from dataclasses import dataclass, field

from capfilt.export import ExportConfig
from capfilt.fingerprint import ADDED_LATER
from capfilt.models.recipe import (
    CaptionerRecipe,
    FilterRecipe,
    ModelRef,
    Precision,
    ScorerRecipe,
)
from capfilt.option import WORK, check_options, option
from capfilt.stage import BarrierStage, Stage
from capfilt.stages.caption import Caption
from capfilt.stages.contamination.dropped import dropping
from capfilt.stages.contamination.stage import Contamination
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.dedup.phash import Phash
from capfilt.stages.download import Download
from capfilt.stages.match import MatchCaptions, MatchWeb, ScoreCaptions, ScoreWeb
from capfilt.stages.policies.blip import Select
from capfilt.stages.policies.presets import Policy
from capfilt.stages.policies.raw import RawWeb, Unjudged


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
    shard_rows: int = option(1000, "Rows in a shard", panel=WORK, at_least=1)
    scorer: ScorerRecipe | None = None
    # What is looked for in evaluation sets, and whether it is left out or marked alone.
    contamination: Contamination | None = field(default=None, metadata=ADDED_LATER)
    drop_contaminated: bool = field(default=True, metadata=ADDED_LATER)

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
        """The checkpoints of the round."""
        return tuple(how.model for how in self._checkpoints())

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precision of each of `models`."""
        return tuple(how.precision for how in self._checkpoints())

    def _checkpoints(self) -> list[CaptionerRecipe | FilterRecipe | ScorerRecipe]:
        found = (self.caption, self.matching, self.scorer)
        return [] if self.raw else [how for how in found if how and how.model.has_files]

    @property
    def raw(self) -> bool:
        """Whether the web's texts are taken as they are."""
        return isinstance(self.select, RawWeb)

    def stages(self) -> list[Stage | BarrierStage]:
        """Return the stages in order."""
        stages: list[Stage | BarrierStage] = [self.fetch]
        hashes = self.dedup is not None and self.dedup.hashes
        if hashes or self.contamination is not None:
            stages.append(Phash())
        stages += [Unjudged()] if self.raw else self._models()
        if self.dedup is not None:
            stages.append(self.dedup)
        if self.contamination is not None:
            stages.append(self.contamination)
        select = dataclasses.replace(self.select, dedup=self.dedup is not None)
        drops = self.contamination is not None and self.drop_contaminated
        return [*stages, dropping(select) if drops else select]

    def seeing(self) -> list[Stage]:
        """Return the stages that evaluation sets go through, for `contamination`."""
        stages: list[Stage] = [self.fetch, Phash()]
        if not self.raw:
            stages.append(self._match_web())
        return stages

    def _models(self) -> list[Stage]:
        how, second = self.matching, self.scorer
        own = None if type(how) is FilterRecipe else how
        stages: list[Stage] = [
            self.caption,
            self._match_web(),
            MatchCaptions(how.model, how.itm_token, how.precision, recipe=own),
        ]
        if second is not None:
            stages.append(ScoreWeb(second.model, precision=second.precision))
            stages.append(ScoreCaptions(second.model, precision=second.precision))
        return stages

    def _match_web(self) -> MatchWeb:
        how = self.matching
        own = None if type(how) is FilterRecipe else how
        return MatchWeb(how.model, how.itm_token, how.precision, recipe=own)
