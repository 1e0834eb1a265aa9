"""The plan: stages in order, each with an identity, and what is missing of each.

A stage's id is a hash of its configuration, its version, and the ids of the stages whose columns
it needs; so a change of anything changes exactly what depends on it. A barrier's id also covers
the list of shards. The plan checks `needs` against `adds` before any work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from typing_extensions import TypeIs

from capfilt import schema
from capfilt.errors import PlanError
from capfilt.fingerprint import code_identity, fingerprint, identity_fields
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.stage import BarrierStage, Stage

# Stages of these resources run together, in one pass before the models; a model pass is apart.
_MODEL: Final = "model"


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage with its place in a plan: `id` is `<name>-<16 hex digits>`, its folder's name."""

    stage: Stage | BarrierStage
    id: str
    upstream: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a round over the shards of one input."""

    stages: tuple[PlannedStage, ...]
    shards: tuple[str, ...]
    producers: dict[str, str]  # column -> id of the stage that adds it

    def by_id(self, stage_id: str) -> PlannedStage:
        """Return the stage with this id."""
        return next(p for p in self.stages if p.id == stage_id)

    def named(self, name: str) -> PlannedStage | None:
        """Return the stage with this name, or None."""
        return next((p for p in self.stages if p.stage.name == name), None)

    def schema_of(self, stage_id: str) -> pa.Schema:
        """Return the columns that a stage of the plan adds, or those of the source."""
        return schema.SOURCE if stage_id == source.STAGE else self.by_id(stage_id).stage.adds

    def missing(self, ledger: Ledger, planned: PlannedStage) -> list[str]:
        """Return the shards that a stage has yet to do, in order."""
        done = ledger.shards(planned.id)
        return [shard for shard in self.shards if shard not in done]

    def passes(self) -> list[tuple[PlannedStage, ...]]:
        """Group the stages into passes: a barrier alone, models together, the rest together."""
        groups: list[list[PlannedStage]] = []
        for planned in self.stages:
            if groups and _kind(groups[-1][-1]) == _kind(planned) != "barrier":
                groups[-1].append(planned)
            else:
                groups.append([planned])
        return [tuple(group) for group in groups]

    def identity_of(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return the ids of the stages that add these columns, sorted: what a reader depends on."""
        return tuple(sorted({self.producers[name] for name in columns}))


def is_barrier(stage: Stage | BarrierStage) -> TypeIs[BarrierStage]:
    """Say whether a stage must see all shards at once."""
    return hasattr(stage, "solve")


def compile_plan(stages: Sequence[Stage | BarrierStage], shards: Sequence[str]) -> Plan:
    """Give every stage its id and check that the stages fit together.

    Raises:
        PlanError: a stage needs a column that no earlier stage adds, or adds one that is there.
    """
    producers = dict.fromkeys(schema.SOURCE.names, source.STAGE)
    planned: list[PlannedStage] = []
    for stage in stages:
        _check_fit(stage, producers)
        upstream = tuple(sorted({producers[name] for name in stage.needs}))
        entry = _identified(stage, upstream, shards)
        producers.update(dict.fromkeys(stage.adds.names, entry.id))
        planned.append(entry)
    return Plan(tuple(planned), tuple(shards), producers)


def _identified(
    stage: Stage | BarrierStage, upstream: tuple[str, ...], shards: Sequence[str]
) -> PlannedStage:
    parts: list[object] = [stage.name, stage.version, identity_fields(stage), upstream]
    parts += [code] if (code := code_identity(type(stage))) else []
    if is_barrier(stage):
        parts.append(tuple(shards))
    return PlannedStage(stage, f"{stage.name}-{fingerprint(parts)}", upstream)


def _check_fit(stage: Stage | BarrierStage, producers: dict[str, str]) -> None:
    for name in stage.needs:
        if name not in producers:
            raise PlanError(
                f"stage {stage.name!r} needs the column {name!r}, which no earlier stage adds; "
                f"put a stage before it that does (there are: {', '.join(sorted(producers))})"
            )
    for name in stage.adds.names:
        if name in producers:
            raise PlanError(
                f"stage {stage.name!r} adds the column {name!r}, which {producers[name]} adds "
                "already; leave one of the two out"
            )


def _kind(planned: PlannedStage) -> str:
    if is_barrier(planned.stage):
        return "barrier"
    return _MODEL if planned.stage.resource == _MODEL else "host"


@dataclass(frozen=True, slots=True)
class RunReader:
    """Reads columns of a run, whichever stage wrote them (a `ColumnReader`)."""

    ledger: Ledger
    plan: Plan

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards in the order of the input's rows."""
        return self.plan.shards

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Return these columns of one shard, rows in input order.

        Raises:
            DamageError: a file that should hold them is missing or damaged, or was computed from
                another file than lies there.
            PlanError: no stage of the plan adds one of them.
        """
        by_stage: dict[str, list[str]] = {}
        for name in columns:
            if name not in self.plan.producers:
                raise PlanError(f"no stage of this run adds the column {name!r}")
            by_stage.setdefault(self.plan.producers[name], []).append(name)
        found: dict[str, pa.ChunkedArray] = {}
        receipts: dict[str, Receipt] = {}
        for stage_id, names in by_stage.items():
            schema = self.plan.schema_of(stage_id)
            table, receipts[stage_id] = self.ledger.read_receipted(stage_id, shard, names, schema)
            found.update({name: table.column(name) for name in names})
        check_agreement(self.ledger, receipts)
        return pa.table({name: found[name] for name in columns})


def check_agreement(ledger: Ledger, receipts: Mapping[str, Receipt]) -> None:
    """Check the files of one shard, by their receipts, against each other.

    Raises:
        DamageError: one has other rows, or was computed from another file than lies there.
    """
    for stage_id, receipt in receipts.items():
        for other in receipts.values():
            if receipt.rows != other.rows:
                raise ledger.damage(
                    stage_id, receipt.shard, f"has {receipt.rows} rows, {other.stage} {other.rows}"
                )
        for source_id, sha256 in receipt.inputs.items():
            if source_id in receipts and receipts[source_id].data_sha256 != sha256:
                raise ledger.damage(
                    stage_id,
                    receipt.shard,
                    f"was computed from another file of {source_id} than lies there",
                )
