"""What a run folder holds that its latest rounds do not need."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capfilt.engine.plan import Plan
from capfilt.ledger import source
from capfilt.ledger.ledger import SUFFIX, Ledger


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file or folder that may go: its size in bytes, and why nothing needs it."""

    path: Path
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
    needed = {p.id for plan in plans for p in plan.planned} | {source.STAGE, *beside}
    shards = {shard for plan in plans for shard in plan.shards}
    for stage_id in ledger.stages():
        if stage_id not in needed:
            found.append(_garbage(ledger.folder(stage_id), "no kept round has this stage"))
            continue
        for shard in sorted(ledger.shards(stage_id) - shards):
            path = ledger.folder(stage_id) / f"{shard}{SUFFIX}"
            found.append(_garbage(path, "no kept round has this shard"))
    for folder in sorted(ledger.root.glob("export-*")):
        if folder.name not in exports:
            found.append(_garbage(folder, "no kept round exports it"))
    return found


def remove(garbage: Sequence[Garbage]) -> int:
    """Remove the listed files and folders; returns the bytes that came free."""
    for item in garbage:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    return sum(item.size for item in garbage)


def _garbage(path: Path, why: str) -> Garbage:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return Garbage(path, sum(file.stat().st_size for file in files), why)
