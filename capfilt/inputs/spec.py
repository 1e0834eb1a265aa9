"""What the user asks for (`InputSpec`), what comes out (`Input`, `RAW`), and how to say so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.option import INPUT, option

Kind = Literal["auto", "csv", "tsv", "jsonl", "parquet", "img2dataset", "webdataset", "images"]

# The command line's names of the fields below; messages tell the user to give these.
KIND_OPTION: Final = "--input-format"
URL_OPTION: Final = "--url-col"
CAPTION_OPTION: Final = "--caption-col"
IMAGE_OPTION: Final = "--image-col"
IMAGES_DIR_OPTION: Final = "--images-dir"
ENCODING_OPTION: Final = "--encoding"
DOWNLOAD_MISSING_OPTION: Final = "--download-missing"

BLOCK_ROWS: Final = 8192  # larger blocks are slower (they leave the cache) and hold more memory

RAW: Final = pa.schema(
    [
        # The address; for a local image without one its path as the input has it, unique to it.
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),  # as given: null and "" stay apart
        pa.field("image_ref", pa.string()),  # for `read_image`; null for a row to be downloaded
        pa.field("input_error", pa.string()),  # why this row is unusable; null where it is fine
    ]
)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input as the user describes it. What is None is found out, or told to be ambiguous.

    Kinds: `csv`, `tsv`, `jsonl` and `parquet` are tables of addresses and captions (text may be
    compressed: .gz .bz2 .zst .lz4). `img2dataset` is an output folder of that program, in its
    `files`, `parquet` or `webdataset` format. `webdataset` is any WebDataset tar by its own
    members. `images` is a table of image names and captions beside a folder of images. `auto`
    tells by the names of the files, and takes `images` where `images_dir` is given.
    """

    paths: tuple[str, ...]  # files, folders (not searched recursively) or globs (** allowed)
    kind: Kind = option("auto", "auto: by the file's name", flag="input_format", panel=INPUT)
    url_col: str | None = option(
        None, "Column of addresses", panel=INPUT, shown="url, image_url, … in any case"
    )
    caption_col: str | None = option(
        None, "Column of texts", panel=INPUT, shown="caption, text, alt, … in any case"
    )
    image_col: str | None = option(
        None, "images: column of image names", panel=INPUT, shown="image, file_name, …"
    )
    images_dir: str | None = option(
        None, "images: where the names lead", panel=INPUT, shown="images/ beside the table"
    )
    encoding: str = option("utf-8", "Of text tables; a byte-order mark is skipped", panel=INPUT)
    download_missing: bool = option(
        False, "img2dataset: fetch what it failed to fetch, not leave it failed", panel=INPUT
    )


@dataclass(frozen=True, slots=True)
class Input:
    """An input that was checked. Reading it twice gives the same rows in the same order."""

    local: bool  # every image lies on this machine, so nothing is to be downloaded
    row_count_hint: int | None  # rows, where it is known without reading them
    description: str = field(repr=False)
    stream: Callable[[int], Iterator[pa.RecordBatch]] = field(repr=False, compare=False)

    def rows(self, block_rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows as batches of `RAW`, at the most `block_rows` each.

        Raises:
            InputError: a file was changed since it was checked, or is damaged.
        """
        if block_rows < 1:
            raise InputError(f"blocks of {block_rows} rows are not possible; give at least 1")
        return self.stream(block_rows)

    def describe(self) -> str:
        """Return one line for the log."""
        return self.description
