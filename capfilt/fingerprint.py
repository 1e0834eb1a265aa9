"""A digest of configuration: equal configurations, equal digest; what it cannot hash it refuses.

A random or `repr`-based fallback would let two different configurations share results, or make
one configuration never find its own, so there is none.
"""

import dataclasses
import enum
import hashlib
import json
import math
from typing import Any, Final

# Put into a dataclass field's metadata when the field changes speed or place but not results.
NOT_IDENTITY: Final = {"capfilt_identity": False}


def fingerprint(value: object) -> str:
    """Return 16 hex digits that identify `value`.

    Accepts None, bool, int, finite float, str, bytes, enums, and tuples, lists, string-keyed
    dicts and dataclasses of these. A dataclass counts by its class name and its fields, except
    those whose metadata is `NOT_IDENTITY`.

    Raises:
        TypeError: for anything else; the message says where in the value it lies.
    """
    text = json.dumps(_canonical(value, "value"), sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def _canonical(value: object, where: str) -> Any:  # Any: a JSON tree has no narrower type
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return {"float": value.hex()}  # exact, and never equal to the int of the same value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__qualname__, "name": value.name}
    if isinstance(value, tuple | list):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {"dict": _canonical_dict(value, where)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"dataclass": type(value).__qualname__, "fields": identity_fields(value, where)}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no stable digest; "
        "use plain numbers, strings, tuples and frozen dataclasses in a configuration"
    )


def _canonical_dict(value: dict[Any, Any], where: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r}; only strings have a stable digest")
    return {key: _canonical(item, f"{where}[{key!r}]") for key, item in value.items()}


def identity_fields(value: Any, where: str = "value") -> dict[str, Any]:
    """Return the canonical form of the fields of the dataclass `value` that make its identity."""
    return {
        field.name: _canonical(getattr(value, field.name), f"{where}.{field.name}")
        for field in dataclasses.fields(value)
        if field.metadata.get("capfilt_identity", True)
    }
