"""Image-text pairs to evaluate on: Parquet with images inside, such as an export or a human set."""

import glob
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import DamageError, InputError
from capfilt.export.place import SCORES
from capfilt.ledger.tally import UNDECODABLE
from capfilt.models.pixels import UndecodableImage, load_rgb
from capfilt.wording import counted

_PROBE_SIDE: Final = 32  # pixels: a JPEG is decoded at an eighth, which is enough to find damage
_TEXTS: Final = ("text", "caption")
_FAULTS: Final = {
    "no_image": "without an image",
    "no_text": "without a text",
    "no_truth": "without a truth",
    UNDECODABLE: "with an image that cannot be decoded",
}


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images with their own texts; truth[i][j] says whether text j is true of image i, if known.

    origins[i][j] says where it comes from (web, synthetic, human), if that is known. `left_out`
    counts the rows that cannot be judged, by what is wrong with them.
    """

    images: list[bytes]
    texts: list[list[str]]
    truth: list[list[bool]] | None
    origins: list[list[str]] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many texts there are."""
        return sum(map(len, self.texts))

    def true(self) -> "Pairs":
        """Return the images with their true texts; those without any are left out."""
        if self.truth is None:
            return self
        kept = [
            (image, own)
            for image, texts, truth in zip(self.images, self.texts, self.truth, strict=True)
            if (own := [text for text, true in zip(texts, truth, strict=True) if true])
        ]
        return Pairs([image for image, _ in kept], [own for _, own in kept], None)


def load_pairs(source: str, truth_col: str | None = None, limit: int | None = None) -> Pairs:
    """Read Parquet with the columns `image` (bytes, or a struct of bytes and path) and a text.

    The text is `text` or `caption`. A row without an image, a text or (with `truth_col`) a truth
    costs itself, and is counted. Rows of one picture may follow one another anywhere; they are put
    together by `key` where the row has one, otherwise by the picture's bytes.

    Args:
        source: a file, a folder (an export, or `data/` in it) or a glob.
        truth_col: a boolean column that says whether the text is true of the image.
        limit: at most so many images, the first ones.

    Raises:
        InputError: nothing is there, a column is missing or of another type, or no row is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"at most {limit} images; give at least 1")
    images: dict[str | bytes, bytes] = {}
    texts: dict[str | bytes, list[str]] = {}
    truth: dict[str | bytes, list[bool]] = {}
    origins: dict[str | bytes, list[str]] = {}
    left_out: Counter[str] = Counter()
    for file in _files(source):
        for batch in _batches(file, truth_col):
            for key, image, text, true, origin in _rows(batch, truth_col, left_out):
                if key not in images and limit is not None and len(images) >= limit:
                    continue
                images.setdefault(key, image)
                texts.setdefault(key, []).append(text)
                truth.setdefault(key, []).append(true)
                origins.setdefault(key, []).append(origin)
    if not images:
        why = f" ({left_out_told(left_out)})" if left_out else ""
        raise InputError(f"{source} has no rows to evaluate on{why}")
    known = list(truth.values()) if truth_col else None
    told = any(origin for own in origins.values() for origin in own)
    sources = list(origins.values()) if told else None
    return Pairs(list(images.values()), list(texts.values()), known, sources, dict(left_out))


def readable(pairs: Pairs) -> Pairs:
    """Return the pairs whose image can be decoded; the rows of the others are left out."""
    lost = [place for place, image in enumerate(pairs.images) if not _decodes(image)]
    if not lost:
        return pairs
    rows = sum(len(pairs.texts[place]) for place in lost)
    kept = sorted(set(range(len(pairs.images))) - set(lost))
    return Pairs(
        [pairs.images[place] for place in kept],
        [pairs.texts[place] for place in kept],
        None if pairs.truth is None else [pairs.truth[place] for place in kept],
        None if pairs.origins is None else [pairs.origins[place] for place in kept],
        {**pairs.left_out, UNDECODABLE: rows},
    )


def _decodes(image: bytes) -> bool:
    try:
        load_rgb(image, _PROBE_SIDE)
    except UndecodableImage:
        return False
    return True


def left_out_told(left_out: Mapping[str, int]) -> str:
    """Return how many rows are left out, and why."""
    return ", ".join(
        f"{counted(count, 'row')} {_FAULTS[fault]}" for fault, count in sorted(left_out.items())
    )


def _files(source: str) -> list[Path]:
    path = Path(source)
    found = [path] if path.is_file() else sorted(path.glob("**/*.parquet"))
    found = [file for file in found if file != path / SCORES]  # of an export
    found = found or [Path(name) for name in sorted(glob.glob(source))]
    if not found:
        raise InputError(f"{source} is no Parquet file, nor a folder or a glob with some")
    return found


def _batches(file: Path, truth_col: str | None) -> "list[pa.RecordBatch]":
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}") from error
    text = next((name for name in _TEXTS if name in schema.names), None)
    if "image" not in schema.names or text is None:
        raise InputError(f"{file} has {schema.names}; it needs image and one of {_TEXTS}")
    if truth_col is not None and truth_col not in schema.names:
        raise InputError(f"{file} has no column {truth_col!r} (--truth-col)")
    _check_types(file, schema, text, truth_col)
    wanted = ["image", text, *(n for n in ("key", "origin", truth_col) if n in schema.names and n)]
    try:
        table = pq.read_table(file, columns=wanted, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DamageError(
            f"{file} is damaged ({error}); `capfilt verify` of its export tells more"
        ) from error
    batches: list[pa.RecordBatch] = table.rename_columns(
        ["text" if name == text else name for name in table.column_names]
    ).to_batches()
    return batches


def _check_types(file: Path, schema: pa.Schema, text: str, truth_col: str | None) -> None:
    """Refuse columns that would be taken for something that they are not."""
    image = schema.field("image").type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise InputError(
            f"{file}, column image: is {image}; it must be the encoded image, or a struct with it "
            "in `bytes`, as datasets.Image writes it"
        )
    kind = schema.field(text).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{file}, column {text}: is {kind}; it must be a string")
    if truth_col is not None and not pa.types.is_boolean(schema.field(truth_col).type):
        raise InputError(
            f"{file}, column {truth_col}: is {schema.field(truth_col).type}; the truth of a text "
            "(--truth-col) must be a boolean"
        )


def _rows(
    batch: pa.RecordBatch, truth_col: str | None, left_out: Counter[str]
) -> "Iterator[tuple[str | bytes, bytes, str, bool, str]]":
    """Yield (key, image, text, truth, origin) of the rows that can be judged; counts the others."""
    images = batch.column("image")
    if pa.types.is_struct(images.type):
        images = images.field("bytes")
    count, names = len(batch), batch.schema.names
    columns = [
        batch.column(name).to_pylist() if name in names else [default] * count
        for name, default in (("key", None), ("text", None), (truth_col, True), ("origin", None))
    ]
    for picture, key, text, true, origin in zip(images.to_pylist(), *columns, strict=True):
        fault = _fault(picture, text, true)
        if fault is not None:
            left_out[fault] += 1
            continue
        # A row without a key goes by its picture, not with all others that lack one.
        yield (picture if key is None else key), picture, text, true, origin or ""


def _fault(image: bytes | None, text: str | None, true: bool | None) -> str | None:
    """Say what a row lacks, by a key of `_FAULTS`; None where it can be judged."""
    if not image:
        return "no_image"
    if text is None or not text.strip():
        return "no_text"
    return "no_truth" if true is None else None
