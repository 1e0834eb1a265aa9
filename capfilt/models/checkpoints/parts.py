"""The files that a checkpoint is made of, and their digest."""

import fnmatch
import glob
import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from capfilt.models.checkpoints.tensors import refuse_pointer
from capfilt.models.checkpoints.weights import (
    ADAPTER,
    PICKLED,
    PICKLED_INDEX,
    SAFE,
    SAFE_INDEX,
    Weights,
    first_of,
    form_of,
)
from capfilt.models.vocabulary import QFORMER_TOKENIZER

# Anything else in a folder (a README, other frameworks' weights) changes no result.
_TEXTS: Final = ("*.json", "*.txt", "*.model")
_SAFE: Final = "*.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"


def parts_of(folder: Path, weights: Weights | None) -> list[Path]:
    """Return the files that make a checkpoint's identity, sorted.

    All safetensors files are among them, whichever are used; of pickles those that are.
    """
    kinds = (*_TEXTS, _SAFE)
    files = {
        f
        for kind in kinds
        for place in (folder, folder / QFORMER_TOKENIZER)
        for f in place.glob(kind)
    }
    files.update(() if weights is None else weights.files)
    return sorted(files)


def refuse_pointers(files: Iterable[Path]) -> None:
    """Refuse Git LFS pointers among a checkpoint's files."""
    for file in files:
        refuse_pointer(file)


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """Return SHA-256 over the names and contents of files, in their order, 32 digits."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(folder).as_posix()}\x00{content_digest(file)}\n".encode())
    return total.hexdigest()[:32]


def content_digest(file: Path) -> str:
    """Return SHA-256 over the bytes of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def wanted(names: Collection[str], *, weights: bool = True) -> list[str]:
    """Return which of a repository's files are fetched: those that `parts_of` would find.

    Nothing of other folders and frameworks; pickles only where there are no safetensors.
    """
    texts = [name for name in names if _is_text(name)]
    return sorted(texts + (_weights(names) if weights else []))


def patterns(names: Iterable[str]) -> list[str]:
    """Return names as patterns that match nothing else."""
    return [glob.escape(name) for name in names]


def _is_text(name: str) -> bool:
    folder, _, own = name.rpartition("/")
    return folder in {"", QFORMER_TOKENIZER} and any(
        fnmatch.fnmatchcase(own, kind) for kind in _TEXTS
    )


def _weights(names: Collection[str]) -> list[str]:
    top = [name for name in names if "/" not in name]
    form = form_of(top)
    adapter = [name for name in top if ADAPTER_CONFIG in top and name == first_of(ADAPTER, top)]
    if form in {SAFE, SAFE_INDEX}:
        return sorted({*(name for name in top if name.endswith(".safetensors")), *adapter})
    if form == PICKLED:
        return [PICKLED, *adapter]
    if form == PICKLED_INDEX:
        shards = [name for name in top if fnmatch.fnmatchcase(name, "pytorch_model-*.bin")]
        return [*shards, *adapter]
    return adapter
