"""Any policy, without what stands in evaluation sets."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.stage import BarrierStage, Resource, Stage, Transform
from capfilt.stages.policies.reasons import REASONS, TOLD_REASONS
from capfilt.stages.policies.texts import one_batch

Mask = npt.NDArray[np.bool_]
_MARKS: Final = ("image_in", "text_in", "captions_in")
_BEFORE: Final = [TOLD_REASONS.index(reason) for reason in REASONS[:6]]  # of rows without a choice


def dropping(policy: Any) -> Stage | BarrierStage:  # any policy
    """Return a policy that decides as the given one, and then leaves marked pictures and texts out.

    Where it draws or ranks, nothing takes the place of what is left out.
    """
    return DroppingAll(policy) if hasattr(policy, "solve") else DroppingRows(policy)


@dataclass(frozen=True)
class _Dropping:
    """What both have in common; `policy` is what decides before."""

    policy: Any

    version = 1
    adds = schema.SELECT

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return (*self.policy.needs, *_MARKS)


@dataclass(frozen=True)
class DroppingRows(_Dropping):
    """Of a policy that works on each shard alone."""

    name = "select_clean"
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Open the policy; yield the transform."""
        with self.policy.open() as decide:
            yield lambda batch: _cleaned(batch, decide(batch))


@dataclass(frozen=True)
class DroppingAll(_Dropping):
    """Of a policy that must see all shards; keeps three words a row more than it does."""

    name = "select_clean_all"

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Decide every row; see `stage.BarrierStage`."""
        marks: list[pa.RecordBatch] = []

        def noted() -> Iterator[pa.Table]:
            for table in shards:
                marks.append(one_batch(table.select(list(_MARKS))))
                yield table

        for place, decided in enumerate(self.policy.solve(noted())):
            yield _cleaned(marks[place], decided)


def _cleaned(marks: pa.RecordBatch, decided: pa.RecordBatch) -> pa.RecordBatch:
    """Return a decision without the marked pictures and texts, and with what became of the rows."""
    kept = decided.column("keep_captions")
    lengths = pc.list_value_length(kept).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(lengths)), lengths)
    image, text = (_valid(marks.column(name)) for name in _MARKS[:2])
    own_text = _valid(marks.column("captions_in").flatten())
    web_before, own_before = _mask(decided.column("keep_web")), _mask(kept.flatten())
    web = web_before & ~image & ~text
    own = own_before & ~image[row] & ~own_text
    reasons = _reasons(decided, image, web, own, row)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    told = pa.DictionaryArray.from_arrays(pa.array(reasons), pa.array(TOLD_REASONS, pa.string()))
    arrays = [pa.array(web), pa.ListArray.from_arrays(offsets, pa.array(own)), told]
    return pa.record_batch(arrays, schema=schema.SELECT)


def _reasons(
    decided: pa.RecordBatch, image: Mask, web: Mask, own: Mask, row: npt.NDArray[np.int64]
) -> npt.NDArray[np.int8]:
    """Return each row's place in `TOLD_REASONS`."""
    words = decided.column("reason").cast(pa.string())
    before = pc.index_in(words, pa.array(TOLD_REASONS)).to_numpy(zero_copy_only=False)
    was_kept = np.asarray(pc.starts_with(words, "kept").to_numpy(zero_copy_only=False), bool)
    any_own = np.bincount(row[own], minlength=len(web)) > 0
    reasons: npt.NDArray[np.int8] = before.astype(np.int8)
    for reason, there in (
        ("evaluation_text", was_kept),
        ("kept_web", web),
        ("kept_synthetic", any_own),
        ("kept_both", web & any_own),
        ("evaluation_image", image & ~np.isin(before, _BEFORE)),
    ):
        reasons[there] = TOLD_REASONS.index(reason)
    return reasons


def _valid(column: pa.Array) -> Mask:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)


def _mask(column: pa.Array) -> Mask:
    return np.asarray(column.to_numpy(zero_copy_only=False), bool)
