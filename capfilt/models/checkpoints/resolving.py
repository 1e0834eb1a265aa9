"""From what a user calls a model to a folder of files with a digest, checked before any work."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Final

from capfilt.errors import ModelError
from capfilt.models.checkpoints.adapters import base_name, check_adapter, is_adapter
from capfilt.models.checkpoints.hub import fetch
from capfilt.models.checkpoints.parts import content_digest, digest_of, parts_of, refuse_pointers
from capfilt.models.checkpoints.weights import (
    Weights,
    adapter_file,
    check_whole,
    form_of,
    weights_of,
)
from capfilt.models.families import (
    ModelKind,
    Role,
    config_part,
    model_kind,
    read_config,
    refuse_quantised,
)
from capfilt.models.preprocessing import preprocessing_of
from capfilt.models.recipe import ModelRef
from capfilt.models.vocabulary import check_vocabularies

EMBEDDED: Final = "embedded"
EMBEDDED_FOLDER: Final = Path(__file__).parents[1] / "embedded"  # has a folder for each role
# Pixels where config.json does not say: the defaults of transformers' configurations.
_SIDES: Final = {"blip": 384, "blip-2": 224, "instructblip": 224, "clip": 224}


def resolve_model(name: str, role: Role) -> ModelRef:
    """Find the folder of a model, check that it can be used, and digest its files.

    `name` is `embedded` (the small model that capfilt ships), a folder, or a hub name such as
    `org/name` or `org/name@revision`. A folder may be what a training left, with a captioner, a
    matcher or both in it. A hub name is downloaded, or found in the hub's cache where the hub
    cannot be reached or HF_HUB_OFFLINE is set.

    Raises:
        ModelError: there is no such model, it is of the wrong kind or quantised, files are missing,
            cut off or Git LFS pointers, or tokenizer or preprocessing are those of another.
    """
    folder, commit = _place(name, role)
    try:
        if is_adapter(folder):
            return dataclasses.replace(_adapted(folder, role), name=name, commit=commit)
        return ModelRef(_checked(folder, role), name=name, path=str(folder), commit=commit)
    except OSError as error:
        raise ModelError(f"{name!r} cannot be read: {error}") from error


def find_folder(name: str, role: Role) -> Path:
    """Return the folder of a checkpoint of which no weights are needed; see `resolve_model`."""
    return _place(name, role, weights=False)[0]


def check_architecture(folder: Path) -> None:
    """Check a checkpoint of which no weights are taken: config.json, and a BLIP's tokenizer.

    Raises:
        ModelError: it is quantised, or its tokenizer is that of another.
    """
    config = read_config(folder)
    refuse_quantised(folder, config)
    refuse_pointers(parts_of(folder, None))
    if config["model_type"] == "blip":
        check_vocabularies(folder, ModelKind.BLIP_CAPTIONER)


def _place(name: str, role: Role, *, weights: bool = True) -> tuple[Path, str | None]:
    """Return the folder of a model, and the commit where it came from a hub."""
    if name == EMBEDDED:
        return EMBEDDED_FOLDER / role, None
    if Path(name).is_dir():
        given = Path(name).resolve()
        # What `capfilt train` leaves has a folder of each.
        trained = not (given / "config.json").exists() and (given / role / "config.json").exists()
        return given / role if trained else given, None
    if name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") != 1:
        raise ModelError(
            f"there is no folder {name!r} with a {role}; give a folder, a hub name such as "
            f"Salesforce/blip-image-captioning-base (@revision), or {EMBEDDED!r}"
        )
    found = fetch(name, lambda folder: _check_begun(folder, role), weights=weights)
    return found.folder, found.commit


def _check_begun(folder: Path, role: Role) -> None:
    """Check what can be checked before weights are fetched."""
    if (folder / "config.json").is_file():
        model_kind(folder, role)
    else:
        check_adapter(folder)


def _checked(folder: Path, role: Role) -> str:
    """Check a folder with whole weights; return its digest."""
    weights = _check(folder, role)
    return digest_of(folder, parts_of(folder, weights))


def _check(folder: Path, role: Role) -> Weights:
    files = parts_of(folder, None)
    refuse_pointers(files)
    kind = model_kind(folder, role)
    weights = weights_of(folder)
    check_whole(weights.files)
    check_vocabularies(folder, kind)
    _check_side(folder, kind)
    return weights


def _check_side(folder: Path, kind: ModelKind) -> None:
    """Refuse pictures of another size than the weights are for: no forward pass takes them."""
    side = preprocessing_of(folder, kind).side
    vision = config_part(read_config(folder), "vision_config")
    own = vision.get("image_size", _SIDES[kind.model_type])
    if side != own:
        raise ModelError(
            f"{folder} makes pictures of {side} pixels, and its weights are for {own}; copy the "
            "preprocessing of the checkpoint beside its weights"
        )


def _adapted(folder: Path, role: Role) -> ModelRef:
    """Return an adapter on its base, whose tokenizer and preprocessing are used.

    Weights beside an adapter may be its base, or may have it in them already: they are taken only
    where they are the base's own, bit for bit.
    """
    config = check_adapter(folder)
    file = adapter_file(folder)
    refuse_pointers([folder / "adapter_config.json"])
    check_whole([file])
    beside = form_of([each.name for each in folder.iterdir()]) is not None
    base = _base(folder, config, role)
    weights = _check(folder, role) if beside else None
    if weights is not None:
        _check_beside(weights, base)
    files = parts_of(folder, weights)
    own = digest_of(folder, sorted({*files, file}))
    digest = hashlib.sha256(f"{own} merged into {base.digest}".encode()).hexdigest()[:32]
    path = str(folder) if beside else base.path
    return ModelRef(digest, "", path=path, adapter=str(folder), base=base.described)


def _base(folder: Path, config: dict[str, Any], role: Role) -> ModelRef:  # JSON
    name = base_name(folder, config)
    if Path(name).is_dir() and Path(name).samefile(folder):
        return ModelRef(_checked(folder, role), name="the weights beside it", path=str(folder))
    try:
        place, commit = _place(name, role)
        if is_adapter(place):
            raise ModelError(f"{name!r} is an adapter itself; merge that into its own base first")
        return ModelRef(_checked(place, role), name=name, path=str(place), commit=commit)
    except ModelError as error:
        raise ModelError(f"the base of the adapter {folder}: {error}") from error


def _check_beside(weights: Weights, base: ModelRef) -> None:
    theirs = weights_of(Path(base.path)).files
    if weights.files == theirs:
        return
    if [content_digest(file) for file in weights.files] != [content_digest(f) for f in theirs]:
        raise ModelError(
            f"{weights.files[0].parent} has an adapter beside weights that are not its base's "
            f"({base.described}): they may have the adapter in them already; move one of the two "
            "away, or write '.' as base_model_name_or_path if they are the base"
        )
