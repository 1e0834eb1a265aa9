"""From what the user gave (files, folders, globs) to a sorted list of files without repeats."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from capfilt.errors import InputError
from capfilt.inputs.formats import FORMATS, SUFFIXES, Format
from capfilt.inputs.spec import KIND_OPTION
from capfilt.store.location import is_address

if TYPE_CHECKING:
    from capfilt.inputs.tables import Table

# Suffix to Arrow's name of the codec; Arrow has no xz, the standard library has.
XZ: Final = "xz"
COMPRESSION: Final = {".gz": "gzip", ".bz2": "bz2", ".xz": XZ, ".zst": "zstd", ".lz4": "lz4"}


def table_format(path: Path) -> Format | None:
    """Return the format of the table that a file is by its name, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSION:
        suffixes.pop()
        found = SUFFIXES.get(suffixes[-1]) if suffixes else None
        return None if found is None or found.binary else found
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def table_kind(path: Path) -> str | None:
    """Return the name of `table_format`."""
    found = table_format(path)
    return None if found is None else found.name


def open_table(path: Path, encoding: str) -> "Table":
    """Open a table by its name.

    Raises:
        InputError: its name does not tell its format, or it is not of that.
    """
    found = table_format(path)
    if found is None:
        raise unknown_format(path)
    return found.open_table(path, encoding)


def expand(given: Iterable[str], in_folder: Callable[[Path], bool], wanted: str) -> list[Path]:
    """Return the files meant, in the order given, each folder's and glob's sorted by name.

    Of a folder only the files directly in it that are not hidden and for which `in_folder` holds
    count; `wanted` names those in messages. A file that is meant twice counts once.

    Raises:
        InputError: nothing is there, nothing matches, or a match is no readable, non-empty file.
    """
    found: dict[str, Path] = {}
    for text in given:
        for path in _expand_one(text, in_folder, wanted):
            _check_file(path)
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _expand_one(text: str, in_folder: Callable[[Path], bool], wanted: str) -> list[Path]:
    if not text:
        raise InputError("one of the input paths is empty; name a file, folder or glob")
    if is_address(text):  # not repeated: it may be signed
        raise InputError(
            f"an input is an address with {text.partition('://')[0][:20]}://; inputs are read from "
            "files of this machine: copy them here, or mount them, and give their paths (a run "
            "folder and exports may lie in a bucket: --run, --to)"
        )
    path = Path(text)
    if path.is_dir():
        inside = list_folder(path)
        matching = [entry for entry in inside if in_folder(entry)]
        if not matching:
            raise InputError(f"{text}: no {wanted} in this folder; {_contents(inside)}")
        return matching
    if path.exists():
        return [path]
    if not glob.has_magic(text):
        raise InputError(f"{text}: no such file or folder; {_neighbours(path)}")
    matches = (Path(match) for match in glob.glob(text, recursive=True))
    files = sorted(m for m in matches if m.is_file() and not m.name.startswith("."))
    if not files:
        raise InputError(f"{text}: this glob matches no file; check the path, and quote it")
    return files


def list_folder(folder: Path) -> list[Path]:
    """Return what lies directly in `folder` and is not hidden, sorted by name.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; it must be readable") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: not a regular file; pipes and devices can be read only once")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it must be readable") from error
    if empty:
        raise InputError(f"{path}: the file is empty; was it downloaded or written completely?")


def _contents(entries: list[Path]) -> str:
    if not entries:
        return "it is empty"
    names = ", ".join(entry.name for entry in entries[:5])
    return f"it holds {names}" + (f" and {len(entries) - 5} more" if len(entries) > 5 else "")


def _neighbours(path: Path) -> str:
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    return f"the nearest folder that exists is {parent}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was when it was checked; a later reading must find the same one."""

    path: Path
    size: int  # bytes
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Take the stamp of `path`."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Raise InputError where the file is not the one that was checked."""
        try:
            same = Stamp.of(self.path) == self
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; it was there before") from error
        if not same:
            raise InputError(
                f"{self.path}: changed while it was being read; "
                "run again when nothing writes to it any more"
            )


def unknown_format(path: Path) -> InputError:
    """Return the error for a file whose name does not tell its format."""
    if ".tar" in path.suffixes or path.suffix == ".tgz":
        return InputError(
            f"{path}: a compressed tar; decompress it first, since images are read by offset"
        )
    return InputError(
        f"{path}: its name does not tell its format; "
        f"give {KIND_OPTION} {', '.join(FORMATS)}, or FILE.py:NAME of your own"
    )


def labels(files: Sequence[Path]) -> list[str]:
    """Return a short name for each file that no other of them has: its path below all of them."""
    paths = [os.path.abspath(path) for path in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [printable(os.path.relpath(path, root)) for path in paths]


def printable(text: str) -> str:
    """Return `text` with bytes that were not UTF-8 (half surrogates) as escapes, so it is text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
