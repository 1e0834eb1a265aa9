"""What the user asks for (`InputSpec`), what comes out (`Input`, `RAW`), and how to say so."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.formats import AUTO, FORMATS, is_format, names_told
from capfilt.option import INPUT, POLICY, check_options, option

# The command line's names of the fields below; messages tell the user to give these.
KIND_OPTION: Final = "--input-format"
URL_OPTION: Final = "--url-col"
CAPTION_OPTION: Final = "--caption-col"
IMAGE_OPTION: Final = "--image-col"
IMAGES_DIR_OPTION: Final = "--images-dir"
ENCODING_OPTION: Final = "--encoding"
DOWNLOAD_MISSING_OPTION: Final = "--download-missing"
NO_CAPTIONS_OPTION: Final = "--no-captions"
FOLLOW_LINKS_OPTION: Final = "--follow-links"
KEEP_OPTION: Final = "--keep-columns"
PREFER_OPTION: Final = "--prefer"

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
# A struct beside RAW's columns where the user asked for columns to be carried to the export.
KEPT: Final = "kept"


def names_of(given: Iterable[str]) -> tuple[str, ...]:
    """Return names that were given with commas between them, or one by one; each once."""
    names = (name.strip() for text in given for name in text.split(","))
    return tuple(dict.fromkeys(filter(None, names)))


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input as the user describes it. What is None is found out, or told to be ambiguous.

    Kinds: `csv`, `tsv`, `jsonl`, `parquet` and `arrow` are tables of addresses and captions, `txt`
    has an address a line (text may be compressed: .gz .bz2 .xz .zst .lz4). `img2dataset` is an
    output folder of that program, in its `files`, `parquet` or `webdataset` format. `webdataset`
    is any WebDataset tar by its own members. `images` is a table of image names and captions
    beside a folder of images. `hf` is Parquet or Arrow with the images inside, as the Hub and
    `save_to_disk` have it; `export` is capfilt's own. `auto` tells by the names of the files, by
    the columns of Parquet and Arrow (see `detection`), and takes `images` where `images_dir` is
    given. `FILE.py:NAME` is a reader of one's own (see `own`).
    """

    paths: tuple[str, ...]  # files, folders (not searched recursively) or globs (** allowed)
    kind: str = option(
        AUTO,
        f"auto (by name and columns), {', '.join(FORMATS)}, or FILE.py:NAME of your own",
        flag="input_format",
        panel=INPUT,
    )
    url_col: str | None = option(
        None, "Column with the addresses", panel=INPUT, shown="url, image_url, … in any case"
    )
    caption_col: str | None = option(
        None, "Column with the texts", panel=INPUT, shown="caption, text, alt, … in any case"
    )
    image_col: str | None = option(
        None,
        "images, hf: column with the images or their names",
        panel=INPUT,
        shown="image, file_name, …",
    )
    images_dir: str | None = option(
        None,
        "images: folder in which the names are looked up",
        panel=INPUT,
        shown="images/ beside the table",
    )
    encoding: str = option(
        "utf-8", "Encoding of text files; a byte-order mark is skipped", panel=INPUT
    )
    download_missing: bool = option(
        False,
        "Fetch rows that have an address and no image (img2dataset, hf, export)",
        panel=INPUT,
    )
    no_captions: bool = option(
        False, "Read no texts; captions are written all the same", panel=INPUT
    )
    prefer: Literal["image", "url"] = option(
        "image", "hf, export: of a row with an image and an address, take this one", panel=INPUT
    )
    follow_links: bool = option(
        False,
        "Follow links out of the images folder, into a store (DVC, git-annex, …)",
        panel=INPUT,
    )
    keep_columns: tuple[str, ...] = option(
        (),
        "Carry these columns to the export: a,b (may be repeated)",
        panel=INPUT,
        given_as=list[str],
        read=names_of,
    )
    decontaminate: tuple[str, ...] = option(
        (),
        "Leave out what stands in this evaluation set, a folder with pictures (may be repeated)",
        panel=POLICY,
        given_as=list[str],
        read=tuple,
        identity=False,
    )
    keep_contaminated: bool = option(
        False, "Mark what stands in evaluation sets, and keep it", panel=POLICY, identity=False
    )

    def __post_init__(self) -> None:
        """Check the words."""
        check_options(self)
        if not is_format(self.kind):
            raise InputError(
                f"there is no input format {self.kind!r}; give {AUTO}, one of {names_told()}, or "
                "FILE.py:NAME"
            )


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a run folder knows of an input from when it was cut."""

    rows: int
    described: str
    kept_stage: str | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of an input that follow each other and can be read alone, in any process.

    `identity` is a digest of the file's place, size and time, of where in it the rows stand, and of
    how they are read.
    """

    stream: Callable[[int], Iterator[pa.RecordBatch]] = field(repr=False, compare=False)
    identity: str


@dataclass(frozen=True, slots=True)
class Input:
    """An input that was checked. Reading it twice gives the same rows in the same order."""

    local: bool  # every image lies on this machine, so nothing is to be downloaded
    row_count_hint: int | None  # rows, where it is known without reading them
    description: str = field(repr=False)
    stream: Callable[[int], Iterator[pa.RecordBatch]] = field(repr=False, compare=False)
    kept: pa.Schema | None = None  # of the struct column `kept`; None: there is none
    # A digest of the files' places, sizes and times, and of how they are read; None where the rows
    # depend on more than these.
    identity: str | None = None
    remembered: Remembered | None = None  # then the rows were not read to check them
    pieces: tuple[Piece, ...] = ()  # all rows, in order; none where they are read as a whole alone

    def rows(self, block_rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows as batches of `RAW` (and `kept`), at the most `block_rows` each.

        Raises:
            InputError: a file was changed since it was checked, or is damaged.
        """
        if block_rows < 1:
            raise InputError(f"blocks of {block_rows} rows are not possible; give at least 1")
        return (
            batch.slice(start, block_rows)
            for batch in self.stream(block_rows)
            for start in range(0, batch.num_rows, block_rows)
        )

    def describe(self) -> str:
        """Return one line for the log."""
        return self.description
