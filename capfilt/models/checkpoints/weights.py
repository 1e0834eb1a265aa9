"""The weight files of a checkpoint: which are used, whether they are whole, and what they share.

Of two formats in one folder the first in `_FORMS` is used: safetensors before PyTorch's pickles,
one file before shards, which is transformers' own order.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capfilt.errors import ModelError
from capfilt.models.checkpoints.pickled import check_records, read_pickled
from capfilt.models.checkpoints.tensors import Stored, read_safetensors, refuse_pointer, torn
from capfilt.models.recipe import ModelRef

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_FORMS: Final = (SAFE, SAFE_INDEX, PICKLED, PICKLED_INDEX)
ADAPTER: Final = ("adapter_model.safetensors", "adapter_model.bin")
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of one format, and whether that is safetensors."""

    files: tuple[Path, ...]
    safe: bool


def form_of(names: Collection[str]) -> str | None:
    """Return the file that says which weights are used, of the names in a folder."""
    return first_of(_FORMS, names)


def first_of(wanted: Collection[str], names: Collection[str]) -> str | None:
    """Return the first of the wanted names that is there."""
    return next((name for name in wanted if name in names), None)


def weights_of(folder: Path) -> Weights:
    """Find the weight files that a checkpoint is loaded from.

    Raises:
        ModelError: there are none, or some of several are missing.
    """
    names = sorted(file.name for file in folder.iterdir())
    form = form_of(names)
    if form is None:
        raise ModelError(f"{folder} has no weights: {_instead(names)}")
    files = _shards(folder / form) if form.endswith(".index.json") else [form]
    lost = [name for name in files if name not in names]
    if lost:
        raise ModelError(
            f"{folder} lacks {len(lost)} of its {len(files)} weight files ({', '.join(lost[:3])}); "
            "copy or fetch them too"
        )
    return Weights(tuple(folder / name for name in files), form in {SAFE, SAFE_INDEX})


def read_tensors(file: Path) -> dict[str, Stored]:
    """Return the tensors of a weight file by name, from its header alone.

    Raises:
        ModelError: it is cut off, a Git LFS pointer, quantised, or holds more than weights.
    """
    refuse_pointer(file)
    tensors = (read_safetensors if file.suffix == ".safetensors" else read_pickled)(file)
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype not in _FLOATS:
            raise ModelError(
                f"{file} is quantised ({name} is {tensor.dtype}); give the checkpoint in floats"
            )
    return tensors


def check_whole(files: Collection[Path]) -> None:
    """Read the header of every weight file (see `read_tensors`), and check what has checksums."""
    for file in files:
        read_tensors(file)
        if file.suffix != ".safetensors":
            check_records(file)


def weight_bytes(model: ModelRef) -> int:
    """Return the size of a model's weight files in bytes; 0 where there are none yet."""
    if not model.has_files:
        return 0
    try:
        files = [*weights_of(Path(model.path)).files, *_adapter_files(model)]
    except (ModelError, OSError):
        return 0
    return sum(file.stat().st_size for file in files)


def share_weights(one: ModelRef, other: ModelRef) -> bool:
    """Say whether two checkpoints have the same image encoder, bit for bit, in whatever format.

    Captioner and filter are fine-tuned apart; a filter that shares the captioner's weights shares
    its mistakes and lets them pass (BLIP Table 4: noise 8 % instead of 25 %).
    """
    if not (one.has_files and other.has_files):
        return False
    mine, others = _vision_digests(one), _vision_digests(other)
    return bool(mine) and mine == others


def adapts_vision(model: ModelRef) -> bool:
    """Say whether a model's adapter changes its image encoder."""
    return any("vision_model." in name for f in _adapter_files(model) for name in read_tensors(f))


def adapter_file(folder: Path) -> Path:
    """Return the weights of the adapter in a folder, safetensors before a pickle.

    Raises:
        ModelError: there are none.
    """
    for name in ADAPTER:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder} has an adapter_config.json but no {' and no '.join(ADAPTER)}")


def _adapter_files(model: ModelRef) -> list[Path]:
    return [] if model.adapter is None else [adapter_file(Path(model.adapter))]


def _vision_digests(ref: ModelRef) -> dict[str, str]:
    """Return the digests of the image encoder's matrices, by name."""
    if adapts_vision(ref):
        return {}
    return {
        name: hashlib.sha256(tensor.content()).hexdigest()
        for name, tensor in _tensors(Path(ref.path))
        if name.startswith("vision_model.") and name.endswith("qkv.weight")
    }


def _tensors(folder: Path) -> Iterator[tuple[str, Stored]]:
    for file in weights_of(folder).files:
        yield from read_tensors(file).items()


def _shards(index: Path) -> list[str]:
    """Return the files that an index names, each once, sorted."""
    refuse_pointer(index)
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise torn(index, f"no index: {type(error).__name__}") from error
    if not named or any(Path(name).name != name for name in named):
        raise torn(index, "it names no files of its own folder")
    return named


def _instead(names: list[str]) -> str:
    known = (".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".onnx", ".pt", ".pth", ".ckpt")
    found = [name for name in names if name.endswith(known)]
    there = f"{', '.join(found[:3])} cannot be used" if found else "none are there"
    return f"{there}; {SAFE} or {PICKLED} is needed, or shards with their index"
