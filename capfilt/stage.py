"""What a stage is: a frozen recipe that, once opened, adds columns to batches of rows.

A stage is a frozen dataclass; its fields are its configuration and its identity. It loads
nothing until `open()`, so planning, `status` and `--help` never import torch.

A stage whose version rises says why in a class attribute `changes` (version -> a clause that goes
on after "because"): a run that does old shards again tells it (see outdated.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import pyarrow as pa

# N rows of the needed columns -> N rows of the added columns, in the same order. Pure: the output
# for a row depends on that row and the recipe alone, never on its neighbours or on N.
Transform = Callable[[pa.RecordBatch], pa.RecordBatch]

# Stages of one resource run together in one pass over a shard; "network" first.
Resource = Literal["network", "model", "cpu"]


class Stage(Protocol):
    """One step of a round that works on each shard alone.

    `rows_per_call` is how many rows it wants at a time (None: the whole shard); it bounds memory
    and drives the progress bar, and cannot change the result since a transform is row-local.
    """

    @property
    def name(self) -> str:
        """A short lower-case word; the folder of its files begins with it."""

    @property
    def version(self) -> int:
        """Raised whenever the code changes what comes out for the same configuration."""

    @property
    def resource(self) -> Resource:
        """What it spends."""

    @property
    def rows_per_call(self) -> int | None:
        """Rows wanted at a time."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""

    @property
    def adds(self) -> pa.Schema:
        """Columns that it returns, in this order and with these types."""

    def open(self) -> AbstractContextManager[Transform]:
        """Load what it needs (a model, a thread pool); leaving the context frees it."""


class BarrierStage(Protocol):
    """One step that must see narrow columns of all shards before it can say anything of one.

    Its identity includes the list of shards, because a new row can change the answer for an old
    one.
    """

    @property
    def name(self) -> str:
        """A short lower-case word."""

    @property
    def version(self) -> int:
        """Raised whenever the code changes what comes out."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads, of every shard."""

    @property
    def adds(self) -> pa.Schema:
        """Columns that it returns."""

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Take the needed columns of every shard in order; yield the added ones, aligned.

        `shards` is read lazily and once; keep of it only what must be kept.
        """


class ColumnReader(Protocol):
    """Read access to all columns of a run, whichever stage has written them."""

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards of this input, in the order of its rows."""

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Return these columns of one shard, rows in input order."""
