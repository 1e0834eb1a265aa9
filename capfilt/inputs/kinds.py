"""Telling what kind of input the given paths are, by names and by what lies beside them."""

import os
from pathlib import Path
from typing import Literal

from capfilt.errors import InputError
from capfilt.inputs.img2dataset import is_shard
from capfilt.inputs.paths import TableKind, expand, table_kind, unknown_format
from capfilt.inputs.spec import (
    DOWNLOAD_MISSING_OPTION,
    IMAGE_OPTION,
    IMAGES_DIR_OPTION,
    KIND_OPTION,
    InputSpec,
)

AnyKind = TableKind | Literal["img2dataset", "webdataset", "images"]


def find_kind(spec: InputSpec) -> AnyKind:
    """Return the kind of `spec`, which is never "auto".

    Raises:
        InputError: nothing tells it, the files are of several kinds, or an option does not go
            with the kind.
    """
    kind = _found_kind(spec) if spec.kind == "auto" else spec.kind
    for option, given, home in (
        (IMAGES_DIR_OPTION, spec.images_dir is not None, "images"),
        (IMAGE_OPTION, spec.image_col is not None, "images"),
        (DOWNLOAD_MISSING_OPTION, spec.download_missing, "img2dataset"),
    ):
        if given and kind != home:
            raise InputError(
                f"{option} goes with {KIND_OPTION} {home} alone, but {spec.paths[0]} is read as "
                f"{kind}; leave the option out, or give {KIND_OPTION} {home}"
            )
    return kind


def _found_kind(spec: InputSpec) -> AnyKind:
    if spec.images_dir is not None or spec.image_col is not None:
        return "images"
    files = expand(spec.paths, lambda path: _by_name(path) is not None, "table or tar")
    first: dict[AnyKind, Path] = {}
    for path in files:
        first.setdefault(_known(path), path)
    if first.keys() <= {"parquet", "webdataset"} and _is_img2dataset(files):
        return "img2dataset"
    if len(first) > 1:
        mixed = " and ".join(f"{kind} ({path.name})" for kind, path in sorted(first.items()))
        raise InputError(f"{spec.paths[0]}: holds {mixed}; say which with {KIND_OPTION}")
    return next(iter(first))


def wanted_files(spec: InputSpec, kind: AnyKind) -> list[Path]:
    """Return the files of `spec`; of its folders those that belong to `kind`.

    Raises:
        InputError: there are none.
    """
    if kind == "images":
        return _captions_tables(spec)
    if kind == "img2dataset":
        return expand(
            spec.paths, lambda path: path.suffix in {".parquet", ".tar"}, "img2dataset shard"
        )
    return expand(spec.paths, lambda path: _by_name(path) == kind, f"{kind} file")


def _captions_tables(spec: InputSpec) -> list[Path]:
    files = expand(spec.paths, _is_table, "captions table")
    if len(files) > 1 and os.path.isdir(spec.paths[0]):
        names = ", ".join(path.name for path in files[:5])
        raise InputError(f"{spec.paths[0]}: holds several tables ({names}); name the right one")
    return files


def _is_table(path: Path) -> bool:
    """Say whether a file is a table by its name."""
    return table_kind(path) is not None and not _is_statistics(path)


def _by_name(path: Path) -> AnyKind | None:
    if _is_statistics(path):
        return None
    return "webdataset" if path.suffix.lower() == ".tar" else table_kind(path)


def _is_statistics(path: Path) -> bool:
    return path.name.endswith("_stats.json")  # img2dataset's, one a shard


def _known(path: Path) -> AnyKind:
    kind = _by_name(path)
    if kind is None:
        raise unknown_format(path)
    return kind


def _is_img2dataset(files: list[Path]) -> bool:
    """Judge by the first shard; that the others are like it is checked when they are opened."""
    first = files[0].with_suffix(".parquet")
    return first.is_file() and is_shard(first)
