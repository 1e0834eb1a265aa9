"""Which tensors a weight file holds, read from its header alone: no weights, and no torch.

Reading them shows what a torn download, a Git LFS pointer or a foreign file would show only when
the model is loaded, and two formats become comparable.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.errors import ModelError

# Bytes an element, by safetensors' names of types.
ITEM_BYTES: Final = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "C64": 8},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
    **{"F8_E4M3": 1, "F8_E5M2": 1},
}
_POINTERS: Final = (b"version https://git-lfs.github.com/spec/", b"# xet version ")
_MOST_HEADER_BYTES: Final = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: `start` in bytes, `shape` and `strides` in elements."""

    file: Path
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def content(self) -> bytes:
        """Return the elements in row-major order, as they are stored."""
        size = ITEM_BYTES[self.dtype]
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            data = stream.read(span(self.shape, self.strides) * size)
        if self.strides == row_major(self.shape):
            return data
        import numpy as np

        elements = np.frombuffer(data, np.dtype((np.void, size)))
        steps = tuple(stride * size for stride in self.strides)
        view: bytes = np.lib.stride_tricks.as_strided(elements, self.shape, steps).tobytes()
        return view


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements lie between the first and the last of a tensor, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor that lies in row-major order without gaps."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def refuse_pointer(file: Path) -> None:
    """Refuse what a clone without LFS leaves in place of a file.

    Raises:
        ModelError: the file is such a pointer.
    """
    with file.open("rb") as stream:
        begins = stream.read(64)
    if begins.startswith(_POINTERS):
        raise ModelError(
            f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in {file.parent}"
        )


def read_safetensors(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name.

    Raises:
        ModelError: the file is cut off, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size - 8, _MOST_HEADER_BYTES):
            raise torn(file, "no safetensors header, or a part of one")
        header = stream.read(length)
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        found = {name: _stored(file, 8 + length, entry) for name, entry in entries.items()}
        ends = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise torn(file, "no safetensors header") from error
    if 8 + length + ends != size:
        raise torn(file, f"{size:,} bytes where its header tells of {8 + length + ends:,}")
    return found


def torn(file: Path, what: str) -> ModelError:
    """Return the error of a file that is not whole."""
    return ModelError(f"{file} is damaged or half copied ({what}); remove it and fetch it again")


def _stored(file: Path, data: int, entry: Any) -> Stored:  # JSON
    shape = tuple(int(n) for n in entry["shape"])
    start, end = entry["data_offsets"]
    item = ITEM_BYTES.get(entry["dtype"])  # of a newer type only the size is not checked
    if start < 0 or min(shape, default=0) < 0:
        raise ValueError("an offset or a length below 0")
    if item is not None and end - start != math.prod(shape) * item:
        raise ValueError("offsets and shape contradict each other")
    return Stored(file, str(entry["dtype"]), data + int(start), shape, row_major(shape))
