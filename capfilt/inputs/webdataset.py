"""Rows of WebDataset tars by their own members: image, `.txt` caption, `.json` metadata."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from capfilt.inputs.paths import labels, printable
from capfilt.inputs.sources import Source, refuse_kept
from capfilt.inputs.spec import RAW, InputSpec
from capfilt.inputs.tars import Sample, TarShard, open_tar

_Row = tuple[str | None, str | None, str | None, str | None]  # as RAW


@dataclass(frozen=True, slots=True)
class WebDatasetTars:
    """Tars and which fields of their samples' JSON are meant."""

    paths: tuple[Path, ...]
    labels: tuple[str, ...]  # of each tar, unique; a sample without address is named by it
    url_field: str
    caption_field: str | None  # None: the .txt member, else the field `caption`
    no_captions: bool = False

    @classmethod
    def of(cls, paths: Sequence[Path], spec: InputSpec) -> "WebDatasetTars":
        """Take the names of the fields from `spec`."""
        return cls(
            tuple(paths),
            tuple(labels(paths)),
            spec.url_col or "url",
            spec.caption_col,
            spec.no_captions,
        )

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW in the order of the tars. A bad sample costs its row."""
        for path, label in zip(self.paths, self.labels, strict=True):
            shard = open_tar(path)
            with closing(shard.file):
                rows = (self._row(shard, sample, label) for sample in shard.samples())
                while block := list(itertools.islice(rows, block_rows)):
                    columns = [pa.array(column, pa.string()) for column in zip(*block, strict=True)]
                    yield pa.RecordBatch.from_arrays(columns, schema=RAW)

    def _row(self, shard: TarShard, sample: Sample, label: str) -> _Row:
        name = printable(f"{label}/{sample.key}")
        ref, reason = shard.image_ref(sample)
        try:
            url, caption = self._texts(shard, sample)
        except ValueError as error:
            return name, None, None, str(error)
        return url or name, caption, ref, reason

    def _texts(self, shard: TarShard, sample: Sample) -> tuple[str | None, str | None]:
        fields = shard.fields(sample)
        if self.no_captions:
            return _text(fields, self.url_field), None
        caption = None
        if self.caption_field is None:
            caption = shard.text(sample, "txt")
        if caption is None:
            caption = _text(fields, self.caption_field or "caption")
        return _text(fields, self.url_field), caption


def _text(fields: dict[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name!r} in the .json member is no text")
    if value is not None and printable(value) != value:
        raise ValueError(f"{name!r} in the .json member holds half of a surrogate pair")
    return value


def open_tars(spec: InputSpec, files: Sequence[Path]) -> Source:
    """Open tars."""
    refuse_kept(spec, "WebDataset tars")
    tars = WebDatasetTars.of(files, spec)
    return Source(
        "WebDataset tars", tuple(files), tars.read, local=True, pictures=True, files_alone=True
    )
