"""What an export is made from and what is in it: configuration, provenance, columns."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.export.formats import Format, Parquet, named_format, told_formats
from capfilt.export.instructions import load_instructions
from capfilt.export.kept import Kept, feature
from capfilt.fingerprint import PROVENANCE
from capfilt.option import POLICY, check_options, option

# Columns of a run that the export reads.
NARROW: Final = ("caption", "captions", "image_bytes", "keep_web", "keep_captions")
WIDE: Final = (
    "key",
    "url",
    "image",
    "width",
    "height",
    "original_width",
    "original_height",
    "sha256",
    "itm_score",
    "itc_score",
    "caption_itm_scores",
    "caption_itc_scores",
)
READS: Final = (*NARROW, *WIDE)
# The order of files and columns; raised where an export of the same figures comes out otherwise.
LAYOUT: Final = 2

_FEATURES: Final = {
    "key": "string",
    "url": "string",
    "text": "string",
    "origin": "string",
    "itm_score": "float32",
    "itc_score": "float32",
    "caption_index": "int32",
    "width": "int32",
    "height": "int32",
    "original_width": "int32",
    "original_height": "int32",
    "sha256": "string",
    "text_input": "string",
    "text_output": "string",
}
_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_IMAGE: Final = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

# One row for each kept (image, text).
COLUMNS: Final = pa.schema(
    [
        pa.field("key", pa.string()),  # of the row of the input
        pa.field("url", pa.string()),
        pa.field("image", _IMAGE),  # encoded bytes; path is `<key>.jpg`
        pa.field("text", pa.string()),
        pa.field("origin", pa.string()),  # web | synthetic
        pa.field("itm_score", pa.float32()),  # of this text, [0, 1]
        pa.field("itc_score", pa.float32()),  # of this text, [-1, 1]
        pa.field("caption_index", pa.int32()),  # which synthetic text; null for the web's
        pa.field("width", pa.int32()),  # pixels
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),  # of the bytes as fetched
    ]
)


INSTRUCTED: Final = pa.schema([("text_input", pa.string()), ("text_output", pa.string())])
# Where a row is an image: all its texts, the web's first.
ALL_TEXTS: Final = pa.field(
    "all_texts",
    pa.list_(
        pa.struct(
            [
                pa.field("text", pa.string()),
                pa.field("origin", pa.string()),
                pa.field("caption_index", pa.int32()),
                pa.field("itm_score", pa.float32()),
                pa.field("itc_score", pa.float32()),
                pa.field("kept", pa.bool_()),
            ]
        )
    ),
)
# Names that no carried column can have.
RESERVED: Final = [*COLUMNS.names, *INSTRUCTED.names]
_RESERVED_OF_IMAGES: Final = [*RESERVED, ALL_TEXTS.name, "web", "synthetic", "texts"]


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The form of the written files: format, bytes of images and texts a file, rows a row group.

    With `instructions` there are two more columns, the samples of InstructBLIP: `text_input` (one
    of them) and `text_output` (the text). With `kept` there are columns of the input too; they
    are part of an export's identity by `finish.export_name`, where there are some.
    """

    target_bytes: int = option(
        500_000_000,
        "Size of an exported file, in MB",
        flag="file_mb",
        panel=POLICY,
        shown="500",
        read=lambda megabytes: megabytes * 1_000_000,
        at_least=1,
    )
    format: Format = option(
        Parquet(),
        f"Format of the exported files: {told_formats()}; or FILE.py:NAME of your own",
        panel=POLICY,
        given_as=str,
        shown=Parquet.label,
        read=named_format,
        added_later=True,
    )
    row_group_rows: int = 100  # the Hub's viewer reads no larger ones
    split: str = "train"
    license: str = option(
        "unknown",
        "The licence in the card, by the Hub's name (cc-by-4.0); it is not looked into",
        panel=POLICY,
        added_later=True,
    )
    instructions: tuple[str, ...] = option(
        (),
        "Columns text_input and text_output: 'instructblip', or a file with an instruction a line",
        panel=POLICY,
        given_as=str,
        read=load_instructions,
    )
    kept: Kept | None = field(default=None, metadata=PROVENANCE)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)
        if self.row_group_rows < 1:
            raise InputError(f"row_group_rows is {self.row_group_rows}; it must be at least 1")
        if not self.split.isidentifier():
            raise InputError(f"split {self.split!r} must be a plain word such as train")

        if not _LICENSE.fullmatch(self.license):
            raise InputError(
                f"license {self.license!r} is no name of a licence; give one of the Hub's, such as "
                "cc-by-4.0 (see https://huggingface.co/docs/hub/repositories-licenses)"
            )

    @property
    def columns(self) -> pa.Schema:
        """The columns that the format is given."""
        own = [*COLUMNS, *INSTRUCTED] if self.instructions else [*COLUMNS]
        more = [ALL_TEXTS] if self.format.rows == "images" else []
        return pa.schema([*own, *self.carried, *more])

    @property
    def carried(self) -> pa.Schema:
        """The columns of the input that this export carries, as they are named in it.

        Raises:
            InputError: two would have the same name.
        """
        if self.kept is None:
            return pa.schema([])
        images = self.format.rows == "images"
        return self.kept.exported(_RESERVED_OF_IMAGES if images else RESERVED)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the manifest says of where the data came from. `recipe` is the round as JSON.

    `evaluation` says in words what of evaluation sets was found; "": none was looked for.
    """

    capfilt: str
    source: str
    recipe: dict[str, Any]  # JSON
    stages: tuple[str, ...]
    funnel: tuple[tuple[str, int], ...]
    evaluation: str = ""


def hugging_face_metadata(names: list[str], carried: pa.Schema) -> dict[bytes, bytes]:
    """Return the schema metadata by which `datasets` reads `image` as an Image."""
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": kind, "_type": "Value"} for name, kind in _FEATURES.items()
    }
    features |= {column.name: feature(column.type) for column in carried}
    ordered = {name: features.get(name, {"_type": "Image"}) for name in names}
    return {b"huggingface": json.dumps({"info": {"features": ordered}}).encode()}
