"""Which tensors a `pytorch_model.bin` holds, found without torch and without running its pickle.

`torch.save` writes a pickle of names, shapes and places, and the storages beside it: in a zip file
since torch 1.6, one after the other before (torch/serialization.py). The unpickler here knows the
few names that weights need and calls nothing else, so what is not weights alone is refused where
runs are planned. Loading itself is torch's, by `weights_only`.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from capfilt.errors import ModelError
from capfilt.models.checkpoints.tensors import ITEM_BYTES, Stored, span, torn

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LOCAL_HEADER_BYTES: Final = 30  # of a zip record, before its name
_MOST_PICKLE_BYTES: Final = 200_000_000  # names and shapes of a large model take 1 MB
_TYPES: Final = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_DAMAGED: Final = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, AttributeError),
    *(IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError, ImportError),
    MemoryError,  # a torn length
)


class _Foreign(Exception):
    """The pickle asks for something that weights do not need."""


class _Storage(NamedTuple):
    dtype: str
    key: str
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickled(file: Path) -> dict[str, Stored]:
    """Return the tensors of a PyTorch file by name.

    Raises:
        ModelError: the file is cut off, is no state dict, or its pickle needs more than weights.
    """
    try:
        named, starts = _zipped(file) if zipfile.is_zipfile(file) else _legacy(file)
        return {name: _placed(file, tensor, starts) for name, tensor in _state(file, named).items()}
    except _Foreign as error:
        raise ModelError(
            f"{file} holds more than weights ({error}); such a pickle can run code, so it is not "
            "loaded: save the model as safetensors where it is trusted"
        ) from error
    except _DAMAGED as error:
        raise torn(file, f"no whole PyTorch file: {_first_line(error)}") from error


def check_records(file: Path) -> None:
    """Read a zip file's records against their CRC-32; older files, and some newer, have none.

    Raises:
        ModelError: a record is not as it was written.
    """
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            if not any(record.CRC for record in archive.infolist()):
                return  # torch.serialization.set_crc32_options(False)
            bad = archive.testzip()
    except _DAMAGED as error:
        raise torn(file, f"no whole PyTorch file: {_first_line(error)}") from error
    if bad is not None:
        raise torn(file, f"the checksum of {bad} does not hold")


def _state(file: Path, named: object) -> Mapping[str, _Tensor]:
    if isinstance(named, dict) and all(map(_is_weight, named.items())):
        return named
    keys = ", ".join(map(str, list(named)[:3])) if isinstance(named, dict) else type(named).__name__
    raise ModelError(
        f"{file} is no dict of weights but holds {keys}, as a training's own checkpoint does; save "
        "the model in it with save_pretrained"
    )


def _is_weight(entry: tuple[object, object]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], _Tensor)


def _placed(file: Path, tensor: _Tensor, starts: Mapping[str, int]) -> Stored:
    storage, offset, shape, strides = tensor
    if min(offset, *shape, *strides, 0) < 0 or math.prod(shape) > storage.elements:
        raise ValueError("a tensor that is no part of its storage")
    if offset + span(shape, strides) > storage.elements:
        raise ValueError("a tensor ends after its storage")
    start = starts[storage.key] + offset * ITEM_BYTES[storage.dtype]
    return Stored(file, storage.dtype, start, shape, strides)


def _zipped(file: Path) -> tuple[object, dict[str, int]]:
    """Return what a zip file's pickle holds, and where each storage begins."""
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        records = {info.filename: info for info in archive.infolist()}
        names = [name for name in records if name.endswith("/data.pkl")]
        if len(names) != 1 or records[names[0]].file_size > _MOST_PICKLE_BYTES:
            raise ValueError("it has no data.pkl")
        folder = names[0].removesuffix("data.pkl") + "data/"
        starts: dict[str, int] = {}

        def place(storage: _Storage) -> None:
            record = records[folder + storage.key]
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its storages are compressed")
            if record.file_size < storage.elements * ITEM_BYTES[storage.dtype]:
                raise ValueError("a storage is too short")
            starts[storage.key] = _begin(stream, record)

        pickled = records[names[0]]
        if pickled.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its data.pkl is compressed")
        stream.seek(_begin(stream, pickled))  # `archive.open` would insist on a checksum
        return _Reader(io.BytesIO(stream.read(pickled.file_size)), place).load(), starts


def _begin(stream: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Return where the content of a record begins in the file."""
    stream.seek(record.header_offset)
    header = stream.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
    return record.header_offset + len(header) + int(name_bytes) + int(extra_bytes)


def _legacy(file: Path) -> tuple[object, dict[str, int]]:
    """Return what a file of before torch 1.6 holds, and where each storage begins."""
    storages: dict[str, _Storage] = {}

    def place(storage: _Storage) -> None:
        storages[storage.key] = storage

    with file.open("rb") as stream:
        if _Reader(stream, place).load() != _LEGACY_MAGIC:
            raise ValueError("neither a zip file nor the format before it")
        _Reader(stream, place).load()  # the format's version
        _Reader(stream, place).load()  # sizes of the machine's integers
        named = _Reader(stream, place).load()
        keys: list[str] = _Reader(stream, place).load()
        at, starts = stream.tell(), {}
        for key in keys:
            starts[key] = at + 8  # after the number of elements
            at += 8 + storages[key].elements * ITEM_BYTES[storages[key].dtype]
    if at != file.stat().st_size:
        raise ValueError(f"{file.stat().st_size:,} bytes where {at:,} are told of")
    return named, starts


class _Reader(pickle.Unpickler):
    """Reads names, shapes and places; what else a pickle may ask for is refused by its name."""

    def __init__(self, stream: Any, place: Callable[[_Storage], None]) -> None:  # as pickle's own
        super().__init__(stream)
        self._place = place

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few things that weights need."""
        found = _KNOWN.get((module, name))
        if found is None:
            raise _Foreign(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage that lies beside the pickle."""
        kind, dtype, key, _device, elements, *view = pid
        if kind != "storage" or any(each is not None for each in view):
            raise ValueError("a storage that is a part of another")
        storage = _Storage(dtype, str(key), int(elements))
        self._place(storage)
        return storage


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor: _Tensor, *_: object) -> _Tensor:
    return tensor


_KNOWN: Final[dict[tuple[str, str], Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): dtype for name, dtype in _TYPES.items()},
}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
