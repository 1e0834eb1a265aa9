"""Evaluation sets of a round: cut and seen like its own rows, in the same run folder."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from capfilt.engine import passes
from capfilt.engine.plan import Plan, compile_plan
from capfilt.errors import InputError
from capfilt.inputs import Input, InputSpec, open_input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory
from capfilt.ledger.source import SourceManifest, load_manifest
from capfilt.progress import Progress
from capfilt.recipe.round import Round
from capfilt.stages.contamination.stage import Contamination, EvaluationSet

_PICTURES: Final = frozenset(".avif .bmp .gif .heic .jpeg .jpg .jxl .png .tif .tiff .webp".split())
_NOTHING: Final = SourceManifest("", (), 0, 0, 0, 0)
_Walk = Callable[[Input, Ledger, int], SourceManifest]
NamedSets = list[tuple[str, SourceManifest]]


def check_sets(folders: Sequence[str], ledger: Ledger, shard_rows: int) -> None:
    """Refuse what is no evaluation set, before any work.

    Raises:
        InputError: one cannot be read, has no pictures, or has the name of another.
    """
    walked_sets(folders, ledger, shard_rows, lambda *_: _NOTHING)


def walked_sets(folders: Sequence[str], ledger: Ledger, shard_rows: int, walk: _Walk) -> NamedSets:
    """Return the evaluation sets of some folders or files, named after these, as `walk` cuts them.

    Raises:
        InputError: as of `check_sets`.
    """
    found: dict[str, SourceManifest] = {}
    for folder in folders:
        name = Path(folder).resolve().name
        if name in found:
            raise InputError(f"--decontaminate: two sets are named {name!r}; rename one")
        with tempfile.TemporaryDirectory() as scratch:
            data = _opened(folder, Path(scratch), Memory(ledger, shard_rows))
            if not data.local:
                raise InputError(
                    f"--decontaminate {folder}: has addresses and no pictures; give a set with "
                    "its pictures (a folder of images, Parquet with images inside, tars)"
                )
            found[name] = walk(data, ledger, shard_rows)
    return list(found.items())


def _opened(folder: str, scratch: Path, memory: Memory) -> Input:
    """Open an input; of a folder with nothing but pictures these, without texts."""
    try:
        bare = sorted(_relative(Path(folder))) if _is_bare(Path(folder)) else []
        if not bare:
            return open_input(InputSpec((folder,)), memory)
        table = scratch / "pictures.jsonl"
        table.write_text("\n".join(json.dumps({"image": name}) for name in bare))
        return open_input(InputSpec((str(table),), images_dir=folder, no_captions=True))
    except InputError as error:
        raise InputError(f"--decontaminate {folder}: {error}") from error


def _is_bare(folder: Path) -> bool:
    """Say whether a folder has pictures, or folders of such, and no table of them."""
    files = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    return folder.is_dir() and all(path.suffix.lower() in _PICTURES for path in files)


def _relative(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in _PICTURES and path.is_file():
            yield path.relative_to(folder).as_posix()


def looking_for(recipe: Round, named: Sequence[tuple[str, SourceManifest]], drop: bool) -> Round:
    """Return the round that looks for these sets."""
    if not named:
        return recipe
    sets = tuple(EvaluationSet(name, manifest.id) for name, manifest in named)
    looked = Contamination(sets, embedding=not recipe.raw)
    return dataclasses.replace(recipe, contamination=looked, drop_contaminated=drop)


def see_sets(
    ledger: Ledger, recipe: Round, resources: passes.Resources, progress: Progress
) -> bool:
    """Let the sets go through the stages that see them; returns whether all is done."""
    return all(
        passes.advance(plan, ledger, resources, progress) for plan in plans_of(ledger, recipe)
    )


def plans_of(ledger: Ledger, recipe: Round) -> list[Plan]:
    """Return the plan of every evaluation set of a round."""
    sets = recipe.contamination.sets if recipe.contamination else ()
    stages: Any = recipe.seeing()  # of shards alone
    return [compile_plan(stages, load_manifest(ledger, each.input).shards) for each in sets]


def seen_plans(ledger: Ledger, recipe: Round) -> list[Plan]:
    """Return those plans of which nothing is missing."""
    plans = plans_of(ledger, recipe)
    return [p for p in plans if not any(p.missing(ledger, each) for each in p.stages)]
