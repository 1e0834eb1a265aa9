"""What a run folder holds that its latest rounds do not need."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.engine.plan import Plan
from capfilt.errors import DamageError
from capfilt.ledger import source
from capfilt.ledger.ledger import SUFFIX, Ledger
from capfilt.ledger.publish import DAMAGED_DIR
from capfilt.stages.download import Download
from capfilt.store.location import Location
from capfilt.store.reading import size_below
from capfilt.store.stores import store_of


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file or folder that may go: its size in bytes, and why nothing needs it."""

    path: Location
    size: int
    why: str


def find_garbage(
    ledger: Ledger, plans: Sequence[Plan], exports: Sequence[str], beside: Sequence[str] = ()
) -> list[Garbage]:
    """Return what neither these plans nor these export folders (names) need.

    `beside` are stages that stand beside the plans: the columns that exports carry.

    Files that capfilt did not write are never garbage; `capfilt verify` tells of them.
    """
    found = [_garbage(path, "left by a process that died") for path in ledger.sweep()]
    needed = {p.id for plan in plans for p in plan.stages} | {source.STAGE, *beside}
    shards = {shard for plan in plans for shard in plan.shards}
    kept = _Kept(ledger, needed, shards)
    for stage_id in ledger.stages():
        there = ledger.shards(stage_id)
        if stage_id not in needed:
            why = "no kept round has this stage" + kept.warning(stage_id, there)
            found.append(_garbage(ledger.folder(stage_id), why))
            continue
        for shard in sorted(there - shards):
            path = ledger.folder(stage_id) / f"{shard}{SUFFIX}"
            why = "no kept round has this shard" + kept.warning(stage_id, {shard})
            found.append(_garbage(path, why))
    for folder in sorted(ledger.root.glob("export-*")):
        if folder.name not in exports:
            found.append(_garbage(folder, "no kept round exports it"))
    if (damaged := ledger.root / DAMAGED_DIR).is_dir():
        found.append(_garbage(damaged, "damaged files that were moved away"))
    return found


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays of a run: stage ids and shards."""

    ledger: Ledger
    stages: set[str]
    shards: set[str]

    def warning(self, stage_id: str, shards: set[str]) -> str:
        """Say how many pictures of these shards came from the web and are nowhere else.

        A page that is gone, or has another picture today, makes them impossible to have again.
        """
        if not _is_download(stage_id):
            return ""
        try:
            lost = sum(self._only_here(stage_id, shard) for shard in shards)
        except DamageError:
            return "; it holds pictures from the web, maybe their only copy: a file is damaged"
        if not lost:
            return ""
        return (
            f"; {lost:,} pictures in it came from the web, and this is their only copy of that size"
        )

    def _only_here(self, stage_id: str, shard: str) -> int:
        rows = self.ledger.read(source.STAGE, shard, ["image_ref"])
        mine = self._pictures(stage_id, shard)
        only = pc.and_(pc.is_null(rows["image_ref"]), mine["there"])
        for other in self.stages:
            there = _is_download(other) and shard in self.shards
            if other != stage_id and there and self.ledger.has(other, shard):
                only = pc.and_not(only, _has_all(self._pictures(other, shard), mine))
        return int(pc.sum(only).as_py() or 0)

    def _pictures(self, stage_id: str, shard: str) -> pa.Table:
        rows = self.ledger.read(stage_id, shard, ["status", "sha256", "width", "height"])
        return rows.append_column("there", pc.equal(rows["status"], schema.SUCCESS))


def _has_all(copy: pa.Table, original: pa.Table) -> pa.ChunkedArray:
    """Say which pictures of a copy are of the original's file, and no smaller."""
    found = pc.and_(copy["there"], pc.equal(copy["sha256"], original["sha256"]))
    for side in ("width", "height"):
        found = pc.and_(found, pc.greater_equal(copy[side], original[side]))
    return pc.fill_null(found, False)


def _is_download(stage_id: str) -> bool:
    return stage_id.startswith(f"{Download.name}-")


def remove(garbage: Sequence[Garbage]) -> int:
    """Remove the listed files and folders; returns the bytes that came free."""
    for item in garbage:
        store_of(item.path.parent).remove(item.path)
    return sum(item.size for item in garbage)


def _garbage(path: Location, why: str) -> Garbage:
    return Garbage(path, size_below(path), why)
