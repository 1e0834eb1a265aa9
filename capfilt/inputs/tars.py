"""WebDataset tars, read by offset: members are never extracted and links never followed.

A sample is a run of members whose names agree up to the first dot of the file name; what follows
the dot says what a member is (the WebDataset convention).
"""

import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from capfilt.errors import InputError
from capfilt.inputs.refs import MAX_IMAGE_BYTES, tar_ref

# In the order of preference where a sample has several.
IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_TEXT_LIMIT: Final = 16 * 1024 * 1024  # bytes of a .txt or .json member
_CHUNK: Final = 1 << 20
_PLAIN: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar: where its bytes lie."""

    key: str
    extension: str  # lower case, without the dot
    offset: int  # bytes from the beginning of the tar
    length: int
    plain: bool  # an ordinary file: no link, no device, no sparse file


@dataclass(frozen=True, slots=True)
class Sample:
    """Members that belong together, by extension; of two with the same, the first."""

    key: str
    members: dict[str, Member]

    @property
    def image(self) -> Member | None:
        """Return the member that is the image, or None."""
        return next((self.members[e] for e in IMAGE_EXTENSIONS if e in self.members), None)


@dataclass(frozen=True, slots=True)
class TarShard:
    """An uncompressed tar that is open for reading."""

    path: str  # real path
    file: BinaryIO
    status: os.stat_result

    def samples(self) -> Iterator[Sample]:
        """Yield the samples in the order of the tar.

        Raises:
            InputError: the tar is torn or damaged.
        """
        for key, run in itertools.groupby(self._members(), key=lambda member: member.key):
            members: dict[str, Member] = {}
            for member in run:
                members.setdefault(member.extension, member)
            yield Sample(key, members)

    def image_ref(self, sample: Sample) -> tuple[str | None, str | None]:
        """Return the reference of the image of `sample`, or None and why there is none."""
        image = sample.image
        if image is None:
            return None, "the tar has no image for this sample"
        if not image.plain:
            return None, "the image is a link or another special member of the tar"
        if image.length > MAX_IMAGE_BYTES:
            return None, f"image of {image.length} bytes, more than {MAX_IMAGE_BYTES}"
        return tar_ref(self.path, self.status, image.offset, image.length), None

    def text(self, sample: Sample, extension: str) -> str | None:
        """Return a text member of `sample`, or None where there is none.

        Raises:
            ValueError: it is no UTF-8 text, or too long; it costs that row only.
        """
        member = sample.members.get(extension)
        if member is None:
            return None
        if not member.plain or member.length > _TEXT_LIMIT:
            raise ValueError(f"the .{extension} member is too long or no plain file")
        try:
            return os.pread(self.file.fileno(), member.length, member.offset).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the .{extension} member is not UTF-8") from error

    def fields(self, sample: Sample) -> dict[str, object]:
        """Return the .json member of `sample` as an object; an empty one where there is none.

        Raises:
            ValueError: it is no JSON object; it costs that row only.
        """
        text = self.text(sample, "json")
        try:
            value = json.loads(text) if text is not None else {}
        except (ValueError, RecursionError) as error:
            raise ValueError("the .json member is not JSON") from error
        if not isinstance(value, dict):
            raise ValueError("the .json member is no object")
        return value

    def _members(self) -> Iterator[Member]:
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                yield from self._walk(tar)
                self._check_end(tar.offset)
        # tarfile lets some ValueErrors of hostile headers through.
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise InputError(
                f"{self.path}: cannot be read as a tar ({error}); it is torn, compressed or of "
                "another format: fetch it again, or decompress it (images are read by offset)"
            ) from error

    def _walk(self, tar: tarfile.TarFile) -> Iterator[Member]:
        before = -1
        while (info := tar.next()) is not None:
            # It would keep every header in memory.
            tar.members = []  # type: ignore[attr-defined]  # public in effect, not in typeshed
            if tar.offset <= before:  # a negative size leads backwards, without end
                raise tarfile.ReadError(f"the header of member {info.name[:100]!r} is hostile")
            before = tar.offset
            folder, slash, name = info.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if stem and dot and not info.isdir():
                plain = info.type in _PLAIN and info.sparse is None
                key = f"{folder}{slash}{stem}"
                yield Member(key, extension.lower(), info.offset_data, info.size, plain)

    def _check_end(self, offset: int) -> None:
        """Raise ReadError where more than zeros follows: tarfile takes a bad header for the end."""
        self.file.seek(offset)
        while chunk := self.file.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                raise tarfile.ReadError(f"damaged at byte {offset}, or several tars joined by cat")


def open_tar(path: Path) -> TarShard:
    """Open a tar; close its `file` after use.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it must be readable") from error
    return TarShard(os.path.realpath(path), file, os.fstat(file.fileno()))
