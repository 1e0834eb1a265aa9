"""A place of a file or folder: a local path, or an address such as `s3://bucket/runs/mine`.

`Location` is the handful of `pathlib.Path`'s verbs that everything uses which looks at a run
folder, an export or an input. A local place is a `Path` itself, so nothing stands between capfilt
and the file system; `BucketPath` has the same verbs over the objects of a bucket. What is created
goes through a `Store` (see `stores`), since that is where the two differ.
"""

import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Final, Literal, Protocol, Self

from capfilt.errors import InputError

SCHEMES: Final = ("s3", "gs", "az")
_ADDRESS: Final = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
_ANY_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class Status(Protocol):
    """What is known of a file without reading it."""

    @property
    def st_size(self) -> int:
        """Its bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """When it was last changed, in nanoseconds since 1970."""


class Location(Protocol):
    """The verbs of a place; see `pathlib.Path`, which has them all."""

    @property
    def name(self) -> str:
        """Return the last part of the place."""

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""

    @property
    def suffix(self) -> str:
        """Return what follows the last dot of the name, and the dot."""

    @property
    def suffixes(self) -> list[str]:
        """Return all suffixes of the name."""

    @property
    def parent(self) -> Self:
        """Return the folder that it lies in."""

    def __truediv__(self, name: str) -> Self: ...

    def __lt__(self, other: Self) -> bool: ...

    def __hash__(self) -> int: ...

    def exists(self) -> bool:
        """Say whether a file is there (locally: or a folder)."""

    def is_file(self) -> bool:
        """Say whether a file is there."""

    def is_dir(self) -> bool:
        """Say whether a folder is there; in a bucket: whether anything lies below."""

    def is_symlink(self) -> bool:
        """Say whether it is a link."""

    def stat(self) -> Status:
        """Return size and time of a file; raises FileNotFoundError where there is none."""

    def open(self, mode: Literal["rb"]) -> BufferedReader:
        """Open a file for reading from its beginning to its end."""

    def read_bytes(self) -> bytes:
        """Return what a file holds."""

    def read_text(self, encoding: str) -> str:
        """Return the text that a file holds."""

    def iterdir(self) -> Iterator[Self]:
        """Yield what lies directly in a folder."""

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yield what lies in a folder and has such a name."""

    def rglob(self, pattern: str) -> Iterator[Self]:
        """Yield all that lies below a folder and has such a name."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""

    def relative_to(self, other: Self) -> PurePath:
        """Return the place below a folder that it lies in."""

    def with_name(self, name: str) -> Self:
        """Return the place beside this one that has a name."""

    def resolve(self) -> Self:
        """Return the place without links and `..`."""


def location(text: str) -> Location:
    """Return the place that a text means.

    Raises:
        InputError: it is an address that cannot be used; see `check_address`.
    """
    if not is_address(text):
        return Path(text)
    from capfilt.store.bucket import BucketPath

    scheme, bucket, key = check_address(text)
    return BucketPath(f"{scheme}://{bucket}", key)


def is_address(text: str) -> bool:
    """Say whether a text is an address rather than a local path."""
    return _ADDRESS.match(text) is not None or _looks_remote(text)


def placed(root: Location, place: str) -> Location:
    """Return a place that is written down relative to `root`, or as a whole."""
    return location(place) if is_absolute(place) else root / place


def written(place: Location, root: Location) -> str:
    """Return a place as `placed` takes it: below `root` where it lies there, else as a whole."""
    here, base = place.resolve(), root.resolve()
    try:
        return here.relative_to(base).as_posix()
    except (ValueError, TypeError):  # elsewhere; or in a store of another kind
        return str(here)


def is_absolute(place: str) -> bool:
    """Say whether a place says by itself where it is: an address, or a path from the root."""
    return is_address(place) or Path(place).is_absolute()


def check_address(text: str) -> tuple[str, str, str]:
    """Take an address apart: scheme, bucket, and the key below it without slashes around.

    Raises:
        InputError: another scheme, no bucket, or something secret in it. The message repeats no
            part that may be a secret.
    """
    found = _ANY_SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    rest = text[found.end() :] if found else text
    bucket, _, key = rest.partition("/")
    if scheme not in SCHEMES:
        raise InputError(
            f"{scheme}:// is no place for files that capfilt knows; give a path, or an address "
            f"with {', '.join(f'{each}://' for each in SCHEMES)}"
        )
    if "@" in bucket or ":" in bucket:
        raise InputError(
            f"an address with {scheme}:// holds a user, password or port before its bucket; "
            "credentials come from the environment alone, and a server's address from "
            "AWS_ENDPOINT_URL: give scheme, bucket and prefix"
        )
    if "?" in rest or "#" in rest:
        raise InputError(
            f"an address with {scheme}://{bucket} has a query or fragment (a signature?); "
            "credentials come from the environment alone: give scheme, bucket and prefix"
        )
    if not _BUCKET.fullmatch(bucket):
        raise InputError(f"{scheme}://: there is no bucket {bucket[:80]!r}; give scheme://bucket/…")
    parts = [part for part in key.split("/") if part]
    if {".", ".."} & set(parts) or any(ord(letter) < 32 for letter in key):
        raise InputError(f"{scheme}://{bucket}: a prefix has no '.', '..' or control characters")
    return scheme, bucket, "/".join(parts)


def is_there(place: Location) -> bool:
    """Say whether something has that name, be it a link to nothing."""
    return place.exists() or place.is_symlink()


def _looks_remote(text: str) -> bool:
    """Say whether a text has another scheme: it is refused rather than taken for a folder."""
    return _ANY_SCHEME.match(text) is not None and not Path(text).exists()
