"""What the tests of capfilt.inputs share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import InputError
from capfilt.inputs import RAW, InputSpec, open_input

Pair = tuple[str | None, str | None]
Write = Callable[[str, str | bytes], Path]


def rows_of(*paths: Path | str, **options: Any) -> list[dict[str, str | None]]:
    """Open an input and return all its rows; they must be the same in blocks of any size."""
    data = open_input(InputSpec(tuple(str(path) for path in paths), **options))
    rows = [row for batch in data.rows() for row in batch.to_pylist()]
    small = list(data.rows(block_rows=2))
    assert all(batch.schema == RAW and batch.num_rows <= 2 for batch in small)
    assert [row for batch in small for row in batch.to_pylist()] == rows
    assert data.row_count_hint == len(rows)
    return rows


def pairs_of(*paths: Path | str, **options: Any) -> list[Pair]:
    """Return (url, caption) of every row of an input in which no row is at fault."""
    rows = rows_of(*paths, **options)
    assert all(row["input_error"] is None and row["image_ref"] is None for row in rows)
    return [(row["url"], row["caption"]) for row in rows]


def fault_of(*paths: Path | str, **options: Any) -> str:
    """Return the message with which an input is refused."""
    with pytest.raises(InputError) as caught:
        open_input(InputSpec(tuple(str(path) for path in paths), **options))
    return str(caught.value)


def has_all(text: str, parts: Iterable[str]) -> bool:
    """Say whether every part stands in the text (a failing assertion then shows the text)."""
    return all(part in text for part in parts)
