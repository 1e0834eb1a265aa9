"""Opening tables that have the images inside: the Hub's, `save_to_disk`'s, and our exports."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.columns import CAPTION, URL, maybe_column
from capfilt.inputs.embedded import Embedded, PictureTable, find_images, open_picture_table
from capfilt.inputs.exported import MARKS, ExportRows, extra_columns
from capfilt.inputs.paths import labels
from capfilt.inputs.sources import Source, found_column, kept_columns, kept_line
from capfilt.inputs.spec import KIND_OPTION, InputSpec
from capfilt.inputs.tables import Table, Wanted, raw_of, same_column, spread


def open_export(spec: InputSpec, files: Sequence[Path]) -> Source:
    """Open exports of capfilt."""
    return open_pictures(spec, files, exported=True)


def open_pictures(spec: InputSpec, files: Sequence[Path], exported: bool = False) -> Source:
    """Open tables with the images inside."""
    tables = [open_picture_table(path) for path in files]
    images = [find_images(table, spec.image_col) for table in tables]
    for table, image in zip(tables, images, strict=True):
        if image is None or image != images[0]:
            raise InputError(
                f"{table.stamp.path}: has no column of images as {tables[0].stamp.path} has it; "
                "run them one after the other"
            )
    first = images[0]
    assert first is not None  # the loop above has seen it
    url_col, caption_col = spec.url_col, spec.caption_col
    if exported:  # a column that it carries may have another known name
        _check_export(tables)
        url_col, caption_col = url_col or "url", caption_col or "text"
    caption = None if spec.no_captions else found_column(CAPTION, caption_col, tables)
    urls = [maybe_column(URL, url_col, t.columns, str(t.stamp.path)) for t in tables]
    rows = Embedded(
        tables=tuple(tables),
        labels=tuple(labels(files)),
        image=first,
        url=same_column([url or "" for url in urls], tables, URL.what) or None,
        caption=caption,
        several=True,
        extra=extra_columns(_common(tables)) if exported else (),
        kept=kept_columns(spec, tables),
        images_dir=spec.images_dir,
        follow_links=spec.follow_links,
        prefer_url=spec.prefer == "url",
        download_missing=spec.download_missing,
    )
    return Source(
        _embedded_line(rows, exported),
        tuple(files),
        _PictureRows(rows, exported).read,
        local=not (rows.prefer_url or rows.download_missing),
        pictures=True,
        kept=rows.kept,
    )


def _common(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the columns that all tables have."""
    return tuple(name for name in tables[0].columns if all(name in t.columns for t in tables))


def _embedded_line(rows: Embedded, exported: bool) -> str:
    if exported:
        what = "images of an export with its texts of the web (synthetic ones are written anew)"
    else:
        texts = "" if rows.caption is None else f", texts {rows.caption!r}"
        what = f"{rows.tables[0].dialect} with images in {rows.image.name!r}{texts}"
    return f"{what}{', fetched by address' if rows.prefer_url else ''}{kept_line(rows.kept)}"


def _check_export(tables: Sequence[PictureTable]) -> None:
    for table in tables:
        lacking = sorted(MARKS - set(table.columns))
        if lacking:
            raise InputError(
                f"{table.stamp.path}: no column {lacking[0]!r}, so capfilt did not export it; "
                f"for other tables with images give {KIND_OPTION} hf"
            )


@dataclass(frozen=True, slots=True)
class _PictureRows:
    """Tables with the images inside as rows of RAW."""

    rows: Embedded
    exported: bool

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW, a row a text."""
        source = ExportRows(self.rows) if self.exported else self.rows
        wanted = Wanted(("url", "caption"), None, self.rows.kept)
        for whole in source.read(block_rows):
            # A kept column may have any name, so the others are found by their places.
            url, caption, ref, *others = spread(whole).columns
            rest = others[len(self.rows.extra) :]
            plain = pa.RecordBatch.from_arrays([url, caption, *rest], names=wanted.names)
            yield raw_of(plain, wanted, ref)
