"""Where a training's weights and vocabulary come from. Never imports torch."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from capfilt.errors import ModelError
from capfilt.models.checkpoints import resolve_model
from capfilt.models.checkpoints.adapters import is_adapter
from capfilt.models.checkpoints.resolving import check_architecture, find_folder
from capfilt.models.checkpoints.weights import check_whole, weights_of
from capfilt.models.families import Role, WrongKindError, model_kind

_ROLES: Final[tuple[Role, ...]] = ("captioner", "matcher")


@dataclass(frozen=True, slots=True)
class Start:
    """Where weights and vocabulary come from.

    `folder` holds a checkpoint. `fresh`: only its architecture, tokenizer and preprocessing are
    taken, and weights start anew. Otherwise it is what an earlier training published: a folder with
    `med`, or one with `captioner` and/or `matcher`, or a single checkpoint of either kind.
    `digest` says what is in it.
    """

    folder: Path
    fresh: bool
    digest: str


def lacking(start: Start, kind: Literal["pretrain", "captioner", "filter"]) -> tuple[str, ...]:
    """Return which of captioner and filter a training needs and its start has no weights of.

    What is lacking begins at random, as heads, or as the other's copy, as self-attention.
    """
    if start.fresh or (start.folder / "med").is_dir():
        return ()
    there = roles_of(start.folder)
    needed = {"captioner": ("captioner",), "filter": ("matcher",)}.get(kind, _ROLES)
    return tuple({"matcher": "filter"}.get(r, r) for r in needed if r not in there)


def roles_of(folder: Path) -> dict[Role, Path]:
    """Return the folders of captioner and matcher: a training's, or what a checkpoint is."""
    roles = {role: folder / role for role in _ROLES if (folder / role).is_dir()}
    if roles:
        return roles
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    judges = "BlipForImageTextRetrieval" in (config.get("architectures") or ())
    return {"matcher" if judges else "captioner": folder}


def start_of(name: str, *, fresh: bool) -> Start:
    """Return a start of that name: a folder, a hub name, or `embedded`.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be used: see `resolve_model`. An
            adapter is no start: it must be merged into its base first.
    """
    given = Path(name)
    trained = [given / role for role in ("med", "captioner", "matcher") if (given / role).is_dir()]
    if fresh and (given / "config.json").is_file():
        folder, parts = given, [given]  # an architecture needs no weights
    elif trained:
        # A MED has all that its exports have.
        folder, parts = given, trained[:1] if trained[0].name == "med" else trained
    else:
        folder = _checkpoint(name, fresh=fresh)
        parts = [folder]
    weights = [] if fresh else [file for part in parts for file in _weights(part)]
    if fresh:
        check_architecture(folder)
    wanted = ("*.json", "*.txt") if fresh else ("*.json", "*.txt", "*.safetensors")
    digest = hashlib.sha256()
    found = {file for part in parts for kind in wanted for file in part.glob(kind)}
    for file in sorted({*found, *weights}):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.parent.name}/{file.name}\0{content}\n".encode())
    return Start(folder.resolve(), fresh, digest.hexdigest())


def _checkpoint(name: str, *, fresh: bool) -> Path:
    """Return the folder of a single checkpoint, a captioner or a matcher."""
    try:
        return _checkpoint_as(name, "captioner", fresh)
    except WrongKindError as error:
        with contextlib.suppress(WrongKindError):
            return _checkpoint_as(name, "matcher", fresh)
        raise error


def _checkpoint_as(name: str, role: Role, fresh: bool) -> Path:
    if fresh:
        folder = find_folder(name, role)
        model_kind(folder, role)
    else:
        ref = resolve_model(name, role)
        folder = Path(ref.path if ref.adapter is None else ref.adapter)
    if is_adapter(folder):
        raise ModelError(
            f"{name!r} is an adapter, and a training starts from whole weights; merge it into its "
            "base (peft's merge_and_unload) and save the result"
        )
    return folder


def _weights(part: Path) -> list[Path]:
    """Return the weight files that a training reads, after a look at whether they are whole."""
    files = sorted(part.glob("*.safetensors"))
    if part.name != "med":
        files = list(weights_of(part).files)
    check_whole(files)
    return files
