"""A policy of one's own: a class that says which texts are kept, in a file of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from capfilt.stages.policies.rowwise import RowPolicy
from capfilt.stages.policies.texts import (
    Mask,
    Score,
    Texts,
    columns_of,
    decided,
    read_texts,
    said_once,
    text_order,
    usable,
)


@dataclass(frozen=True)
class TextPolicy(RowPolicy):
    """Decides on the texts of a shard, row by row; a subclass overrides `keeps`.

    `judged` names the scores that it looks at; a policy that names none works without them. Its
    fields are part of its identity, and so is the code of the file that defines it.
    """

    dedup: bool = True

    label: ClassVar[str] = "own"
    name: ClassVar[str] = "select_own"
    judged: ClassVar[tuple[Score, ...]] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of(self.judged, self.dedup)

    def keeps(self, texts: Texts, said: Sequence[str | None]) -> Mask:
        """Say of each of T texts whether it is kept; `said` is what they say, None where null.

        The answer for a text may depend on the texts of its row alone. Rows that failed and texts
        that repeat another of their row are left out afterwards.
        """
        raise NotImplementedError

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = read_texts(batch, self.judged, self.dedup)
        said = [
            *batch.column("caption").to_pylist(),
            *batch.column("captions").flatten().to_pylist(),
        ]
        keep = self.keeps(texts, [said[place] for place in text_order(batch)])
        return decided(texts, said_once(texts, keep & usable(texts)))
