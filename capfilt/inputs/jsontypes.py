"""Which types the values of JSON objects have, so that they can be carried in typed columns."""

from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.spec import KEEP_OPTION

_TYPES: Final[dict[type, pa.DataType]] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}
_INT64: Final = 1 << 63


@dataclass(slots=True)
class JsonTypes:
    """The types of these keys over all objects that were added; whole numbers are numbers too."""

    names: tuple[str, ...]
    found: dict[str, pa.DataType] = field(default_factory=dict)

    def add(self, row: dict[str, Any], where: str) -> None:
        """Look at one object; `where` says where it stands.

        Raises:
            InputError: a value has no column type, or another one than those before it.
        """
        for name in self.names:
            kind = _type_of(row.get(name), f"{where}, {name!r}")
            before = self.found.get(name)
            both = kind if before is None else before if kind is None else _joined(before, kind)
            if before is not None and both is None:
                raise InputError(
                    f"{where}: {name!r} is of type {kind}, but {before} in the lines before; "
                    f"write all alike, or leave it out of {KEEP_OPTION}"
                )
            if both is not None:
                self.found[name] = both

    def schema(self) -> pa.Schema:
        """Return the types found; a key without a value anywhere is a text."""
        return pa.schema([(name, _settled(self.found.get(name))) for name in self.names])


def _type_of(value: object, where: str) -> pa.DataType | None:
    if value is None:
        return None
    if isinstance(value, list):
        inner: pa.DataType | None = None
        for item in value:
            kind = None if isinstance(item, list) else _type_of(item, where)
            joined = kind if inner is None else inner if item is None else _joined(inner, kind)
            if item is not None and joined is None:
                raise InputError(f"{where}: a list of several types, which no column can hold")
            inner = joined
        return pa.list_(pa.null() if inner is None else inner)
    kind = _TYPES.get(type(value))
    if kind is None or (isinstance(value, int) and not -_INT64 <= value < _INT64):
        raise InputError(
            f"{where}: neither a text, a number of 64 bits, true or false, nor a list of them; "
            f"leave it out of {KEEP_OPTION}"
        )
    return kind


def _joined(first: pa.DataType, second: pa.DataType | None) -> pa.DataType | None:
    """Return the type that holds both, or None."""
    if second is None or first == second:
        return first if second is not None else None
    if pa.types.is_list(first) and pa.types.is_list(second):
        inner = _joined(first.value_type, second.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_null(first) or pa.types.is_null(second):
        return second if pa.types.is_null(first) else first
    return pa.float64() if {first, second} == {pa.int64(), pa.float64()} else None


def _settled(kind: pa.DataType | None) -> pa.DataType:
    if kind is None:
        return pa.string()
    if pa.types.is_list(kind) and pa.types.is_null(kind.value_type):
        return pa.list_(pa.string())
    return kind
