"""Columns of the input that are carried to the export (`--keep-columns`).

They lie beside the source stage, in a stage of their own with a row for each row of the same
shard; a retry's shard repeats rows of another and has none.
"""

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.errors import DamageError, InputError
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger

PREFIX: Final = "input_"  # before names that a column of the export has
_LIST: Final = "list:"


@dataclass(frozen=True, slots=True)
class Kept:
    """Which columns are carried: the stage that holds them, and their names and types there."""

    stage: str  # its name is a digest of types and values
    names: tuple[str, ...]
    types: tuple[str, ...]  # Arrow's names; `list:` before those of lists

    @property
    def schema(self) -> pa.Schema:
        """The columns as the stage has them."""
        return pa.schema(list(zip(self.names, map(_type_of, self.types), strict=True)))

    def exported(self, taken: list[str]) -> pa.Schema:
        """Return the columns as the export has them; its own columns are named `taken`.

        Raises:
            InputError: two have the same name there.
        """
        names = [f"{PREFIX}{name}" if name in taken else name for name in self.names]
        for name in names:
            if names.count(name) > 1 or name in taken:
                raise InputError(
                    f"--keep-columns: two columns of the export would be named {name!r}; rename "
                    "one in the input, or leave one out"
                )
        return pa.schema(list(zip(names, map(_type_of, self.types), strict=True)))


def kept_of(stage: str | None, columns: pa.Schema | None) -> Kept | None:
    """Describe the columns that an input carries; None: it carries none."""
    if stage is None or columns is None:
        return None
    return Kept(stage, tuple(columns.names), tuple(_name_of(field.type) for field in columns))


def kept_rows(ledger: Ledger, kept: Kept, shard: str, keys: pa.ChunkedArray) -> pa.Table:
    """Return the carried columns of the rows of a shard that have these keys, in their order.

    Raises:
        DamageError: the file of the shard is missing, or does not fit the shard.
    """
    base = shard.partition("~")[0]  # an attempt's rows are rows of the shard that it repeats
    rows = ledger.read(source.STAGE, base, ["key"])["key"]
    table = ledger.read(kept.stage, base)
    places = pc.index_in(keys, rows.combine_chunks())
    if table.num_rows != len(rows) or table.schema.remove_metadata() != kept.schema:
        raise DamageError(
            f"{ledger.path(kept.stage, base)} does not fit its shard; move it away and run again"
        )
    if places.null_count:
        raise DamageError(f"{shard} has rows that {base} has not; run `capfilt verify`")
    return table.take(places)


def feature(kind: pa.DataType) -> dict[str, Any]:  # JSON
    """Return what `datasets` calls a carried type."""
    if pa.types.is_list(kind):
        return {"feature": feature(kind.value_type), "_type": "List"}
    return {"dtype": _name_of(kind), "_type": "Value"}


def _name_of(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{_LIST}{_name_of(kind.value_type)}"
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


def _type_of(name: str) -> pa.DataType:
    if name.startswith(_LIST):
        return pa.list_(_type_of(name.removeprefix(_LIST)))
    return pa.type_for_alias(name)
