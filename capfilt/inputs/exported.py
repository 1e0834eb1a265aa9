"""capfilt's own exports as the input of a next round: each image once, with the texts of the web.

An export has a row for each kept text; the rows of one image follow one another, and have its
address and the digest of its bytes (a key is that of a row of the input, and an image with several
texts had several).
A next round writes and judges synthetic texts anew, as BLIP's rounds do, so those of the export
are left out: taken as given texts they would come out as the web's, which they are not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import InputError
from capfilt.inputs.arrow import load_json
from capfilt.inputs.embedded import CAPTION, KEY, ORIGIN, REF, URL, Embedded
from capfilt.inputs.tables import ERROR

# Of the columns of an export, those by which one is known.
MARKS: Final = frozenset({KEY, "url", "image", "text", ORIGIN})
_DIGEST: Final = "sha256"
_MANIFEST: Final = "manifest.json"
_DATA: Final = re.compile(r"data/[^/]+\.parquet")


def export_files(folder: Path) -> list[Path] | None:
    """Return the data files of a finished export; None: it is no folder of an export.

    Raises:
        InputError: a file that its manifest lists is missing or of another size, or its format is
            none that is read.
    """
    if not (folder / _MANIFEST).is_file() or not (folder / "data").is_dir():
        return None
    manifest = load_json(folder / _MANIFEST)
    listed: Any = manifest.get("files")
    if not isinstance(listed, list) or "digest" not in manifest:
        return None
    files: list[Path] = []
    for entry in listed:
        name = str(entry.get("path")) if isinstance(entry, dict) else ""
        if not _DATA.fullmatch(name):
            continue
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.get("bytes"):
            raise InputError(
                f"{path}: not as the manifest of this export has it; `capfilt verify` says what "
                "is wrong, `capfilt export` writes it again"
            )
        files.append(path)
    if not files:
        raise InputError(
            f"{folder}: an export whose format is no input; `capfilt export --to` another folder, "
            "in the format parquet, writes one that is"
        )
    return files


@dataclass(frozen=True, slots=True)
class ExportRows:
    """The rows of an export, of which `extra_columns` are read beside the others."""

    rows: Embedded

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a row for each text of the web, and one without a text where an image has none."""
        held: pa.RecordBatch | None = None
        for batch in self.rows.read(block_rows):
            whole = batch if held is None else pa.concat_batches([held, batch])
            starts = _starts(whole)
            last = int(starts[-1]) if len(starts) else 0  # its rows may go on in the next batch
            if last:
                yield _images(whole.slice(0, last), starts[:-1])
            held = whole.slice(last)
        if held is not None and held.num_rows:
            yield _images(held, _starts(held))


def extra_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return which columns say what is an image; `columns` are those of the table."""
    return (KEY, ORIGIN, _DIGEST) if _DIGEST in columns else (KEY, ORIGIN)


def _starts(batch: pa.RecordBatch) -> np.ndarray:
    """Return the rows with which another image begins; one without key and digest is of its own."""
    names = _column(batch, KEY)
    if _DIGEST in batch.schema.names:
        names = pc.coalesce(_column(batch, _DIGEST), names)
    images = list(zip(names.to_pylist(), _column(batch, URL).to_pylist(), strict=True))
    pairs = zip([None, *images], images, strict=False)
    return np.flatnonzero([image[0] is None or image != before for before, image in pairs])


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return the first column of that name; one that is kept may have it too."""
    return batch.column(batch.schema.names.index(name))


def _images(batch: pa.RecordBatch, starts: np.ndarray) -> pa.RecordBatch:
    synthetic = pc.equal(_column(batch, ORIGIN), schema.ORIGIN_SYNTHETIC).fill_null(False)
    web = ~np.asarray(synthetic.to_numpy(zero_copy_only=False), bool)
    image = np.zeros(batch.num_rows, np.int64)  # of each row, the first row of its image
    image[starts] = starts
    image = np.maximum.accumulate(image)
    has_web = np.zeros(batch.num_rows, bool)
    np.logical_or.at(has_web, image, web)
    bare = np.zeros(batch.num_rows, bool)  # first rows of images without a text of the web
    bare[starts] = ~has_web[starts]
    taken = np.flatnonzero(web | bare)
    rows, firsts = pa.array(taken), pa.array(image[taken])
    # All rows of an image refer to the same bytes, so that it is known to be one.
    of_image = [batch.schema.names.index(name) for name in (REF, ERROR)]
    arrays = [
        column.take(firsts if i in of_image else rows) for i, column in enumerate(batch.columns)
    ]
    place = batch.schema.names.index(CAPTION)
    arrays[place] = pc.if_else(
        pa.array(bare[taken]), pa.scalar(None, arrays[place].type), arrays[place]
    )
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
