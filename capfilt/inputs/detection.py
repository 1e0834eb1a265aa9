"""Telling what kind of input the given paths are, by names, columns and what lies beside them.

With `auto` each path is told apart on its own, so one call may name several kinds:

- a folder of `save_to_disk` (`state.json`) and a finished export (`manifest.json`, `data/`) by
  what they hold; a folder whose only table is `metadata.jsonl`, `.csv` or `.parquet` with the
  column `file_name`, or that table itself, is the Hub's imagefolder: `images`;
- Parquet beside a tar or folder of its name, or with the columns of one: `img2dataset`;
- Parquet and Arrow with a column of images (see `embedded.find_images`): `export` where it also
  has the columns of capfilt's exports, else `hf`;
- everything else by the end of its name.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from capfilt.errors import InputError
from capfilt.inputs.arrow import saved_files
from capfilt.inputs.columns import URL, Role
from capfilt.inputs.embedded import find_images, open_picture_table
from capfilt.inputs.exported import MARKS, export_files
from capfilt.inputs.formats import AUTO
from capfilt.inputs.images import is_metadata
from capfilt.inputs.img2dataset import is_shard
from capfilt.inputs.own import InputReader
from capfilt.inputs.paths import expand, list_folder, open_table, table_kind, unknown_format
from capfilt.inputs.spec import (
    DOWNLOAD_MISSING_OPTION,
    FOLLOW_LINKS_OPTION,
    IMAGE_OPTION,
    IMAGES_DIR_OPTION,
    KIND_OPTION,
    PREFER_OPTION,
    InputSpec,
)
from capfilt.usercode import is_code, named_recipe

TABLES: Final = "tables"  # of addresses, each file of the format that its own name tells
_PICTURES: Final = ("hf", "export")
_SPLIT: Final = re.compile(r"(.+)-\d{5}-of-\d{5}\.(parquet|arrow)")


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one kind."""

    kind: str
    files: tuple[Path, ...]


def find_parts(spec: InputSpec) -> list[Part]:
    """Return the files of `spec`, in the order given, by their kinds.

    Raises:
        InputError: nothing tells a kind, a folder holds several, or an option does not go with
            any of the kinds.
    """
    parts = _found_parts(spec) if spec.kind == AUTO else [_named_part(spec, spec.kind)]
    for option, given, homes in (
        (IMAGES_DIR_OPTION, spec.images_dir is not None, ("images", "hf")),
        (IMAGE_OPTION, spec.image_col is not None, ("images", "hf")),
        (DOWNLOAD_MISSING_OPTION, spec.download_missing, ("img2dataset", *_PICTURES)),
        (FOLLOW_LINKS_OPTION, spec.follow_links, ("images", "hf", "img2dataset")),
        (PREFER_OPTION, spec.prefer != "image", _PICTURES),
    ):
        own = "images" in homes and is_code(spec.kind)  # its rows may name images
        if given and not own and not any(part.kind in homes for part in parts):
            raise InputError(
                f"{option} goes with {KIND_OPTION} {homes[0]} alone, but {spec.paths[0]} is read "
                f"as {_shown(parts[0])}; leave the option out, or give {KIND_OPTION} {homes[0]}"
            )
    return parts


def _shown(part: Part) -> str:
    kind = table_kind(part.files[0]) if part.kind == TABLES else part.kind
    return kind or part.kind


def _found_parts(spec: InputSpec) -> list[Part]:
    if spec.images_dir is not None or spec.image_col is not None:
        return [_named_part(spec, "images")]
    found: dict[str, dict[str, Path]] = {}
    seen: set[str] = set()
    for text in spec.paths:
        part = _found_part(text)
        own = found.setdefault(part.kind, {})
        for path in part.files:
            place = os.path.abspath(path)
            if place not in seen:
                seen.add(place)
                own[place] = path
    return [Part(kind, tuple(files.values())) for kind, files in found.items() if files]


def _found_part(text: str) -> Part:
    """Return what one path means."""
    folder = Path(text)
    if text and folder.is_dir():
        files = _known_folder(folder)
        if files is not None:
            return Part(_picture_kind(files[0]) or TABLES, tuple(files))
        metadata = _metadata_of(folder)
        if metadata is not None:
            return Part("images", (metadata,))
    files = expand([text], lambda path: _in_folder(path) is not None, "table or tar")
    return Part(_kind_of(text, files), tuple(files))


def _kind_of(text: str, files: list[Path]) -> str:
    """Return the kind of the files that one path means.

    Raises:
        InputError: they are of several.
    """
    first: dict[str, Path] = {}
    for path in files:
        first.setdefault(_known(path), path)
    if first.keys() <= {"parquet", "webdataset"} and _is_img2dataset(files):
        return "img2dataset"
    if len(first) > 1:
        mixed = " and ".join(f"{kind} ({path.name})" for kind, path in sorted(first.items()))
        raise InputError(
            f"{text}: holds {mixed}; say which with {KIND_OPTION}, or name the files one by one"
        )
    kind = next(iter(first))
    if len(files) == 1 and is_metadata(files[0]) and _names_images(files[0]):
        return "images"
    if kind not in {"parquet", "arrow"}:
        return "webdataset" if kind == "webdataset" else TABLES
    pictures = _picture_kind(files[0])
    if pictures is not None and os.path.isdir(text):
        _check_one_split(text, files)
    return pictures or TABLES


def _known_folder(folder: Path) -> list[Path] | None:
    """Return the data files of a folder that says itself what it is, or None."""
    files = saved_files(folder) or export_files(folder)
    if files is not None:
        expand([str(path) for path in files], lambda _: True, "data file")  # each can be read
    return files or None


def _check_one_split(text: str, files: list[Path]) -> None:
    matches = [_SPLIT.fullmatch(path.name) for path in files]
    splits = sorted({match.group(1) for match in matches if match})
    if len(splits) > 1:
        raise InputError(
            f"{text}: holds several splits ({', '.join(splits)}); name one by a glob, such as "
            f"'{text}/{splits[-1]}-*.parquet'"
        )


def _metadata_of(folder: Path) -> Path | None:
    """Return the table of the Hub's imagefolder, or None."""
    tables = [p for p in list_folder(folder) if p.is_file() and _in_folder(p) is not None]
    alone = len(tables) == 1 and is_metadata(tables[0])  # beside another table nothing is certain
    return tables[0] if alone and _names_images(tables[0]) else None


def _names_images(table: Path) -> bool:
    """Say whether a metadata table names images, and no addresses."""
    columns = open_table(table, "utf-8").columns
    return "file_name" in columns and not _has(URL, columns)


def _has(role: Role, columns: tuple[str, ...]) -> bool:
    return any(column.lower() in role.known for column in columns)


def _picture_kind(path: Path) -> Literal["hf", "export"] | None:
    """Return what a Parquet or Arrow file with images in it is, or None."""
    kind = table_kind(path)
    if kind not in {"parquet", "arrow"}:
        return None
    table = open_picture_table(path)
    if find_images(table, None) is None:
        return None
    return "export" if set(table.columns) >= MARKS else "hf"


def _named_part(spec: InputSpec, kind: str) -> Part:
    """Return the files of `spec`; of its folders those that belong to `kind`.

    Raises:
        InputError: there are none.
    """
    if is_code(kind):
        reader = named_recipe(kind, InputReader)
        return Part(kind, _expanded(spec, reader.takes, f"file of {reader.told}"))
    if kind == "images":
        return _images_part(spec)
    if kind == "img2dataset":
        return Part(
            kind,
            _expanded(spec, lambda p: p.suffix in {".parquet", ".tar"}, "img2dataset shard"),
        )
    if kind in {*_PICTURES, "arrow"}:
        ends = {".arrow"} if kind == "arrow" else {".parquet", ".arrow"}
        return Part(kind, _expanded(spec, lambda p: p.suffix in ends, f"{kind} file"))
    return Part(kind, _expanded(spec, lambda p: _by_name(p) == kind, f"{kind} file"))


def _expanded(spec: InputSpec, in_folder: Callable[[Path], bool], wanted: str) -> tuple[Path, ...]:
    return tuple(expand(_unfolded(spec.paths), in_folder, wanted))


def _unfolded(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths, with the data files instead of folders that say what they are."""
    for text in paths:
        files = _known_folder(Path(text)) if text and Path(text).is_dir() else None
        yield from [text] if files is None else map(str, files)


def _images_part(spec: InputSpec) -> Part:
    """Return captions tables, or tables that have the images inside."""
    files = tuple(expand(_unfolded(spec.paths), _is_table, "captions table"))
    table = files[0]
    typed = table_kind(table) in {"parquet", "arrow"}
    if typed and find_images(open_picture_table(table), spec.image_col) is not None:
        return Part("hf", files)
    if len(files) > 1 and os.path.isdir(spec.paths[0]):
        names = ", ".join(path.name for path in files[:5])
        raise InputError(f"{spec.paths[0]}: holds several tables ({names}); name the right one")
    return Part("images", files)


def _is_table(path: Path) -> bool:
    """Say whether a file of a folder is a table by its name; a .txt may be anything there."""
    return table_kind(path) not in {None, "txt"} and not _is_statistics(path)


def _in_folder(path: Path) -> str | None:
    kind = _by_name(path)
    return None if kind == "txt" else kind


def _by_name(path: Path) -> str | None:
    if _is_statistics(path):
        return None
    return "webdataset" if path.suffix.lower() == ".tar" else table_kind(path)


def _is_statistics(path: Path) -> bool:
    return path.name.endswith("_stats.json")  # img2dataset's, one a shard


def _known(path: Path) -> str:
    kind = _by_name(path)
    if kind is None:
        raise unknown_format(path)
    return kind


def _is_img2dataset(files: list[Path]) -> bool:
    """Judge by the first shard; that the others are like it is checked when they are opened."""
    first = files[0].with_suffix(".parquet")
    return first.is_file() and is_shard(first)
