"""What the policies have in common that decide on each shard alone."""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa

from capfilt import schema
from capfilt.option import check_options
from capfilt.stage import Resource, Transform


class RowPolicy:
    """A policy whose answer for a row depends on that row; it has no fields of its own."""

    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call: ClassVar[None] = None
    adds: ClassVar[pa.Schema] = schema.SELECT

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Yield the transform; there is nothing to load."""
        yield self._decide

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        raise NotImplementedError
