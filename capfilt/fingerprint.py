"""A digest of configuration: equal configurations, equal digest; what it cannot hash it refuses.

A random or `repr`-based fallback would let two different configurations share results, or make
one configuration never find its own, so there is none.
"""

import dataclasses
import enum
import hashlib
import json
import math
import sys
import typing
from pathlib import Path
from typing import Any, Final

# Put into a dataclass field's metadata when the field changes speed or place but not results.
NOT_IDENTITY: Final = {"capfilt_identity": False}
# The same of a field that says where something came from: a published dataset tells that too.
PROVENANCE: Final = {**NOT_IDENTITY, "capfilt_provenance": True}
# Of a field that belongs to the machine and not to the run, or may hold a secret: a run folder does
# not remember it, so it is given again where it is needed.
NOT_RECORDED: Final = {"capfilt_recorded": False}
# Of a field that a stage got after it was in use: what came out before is what its default gives,
# so the default is no part of the identity and finished runs stay valid.
ADDED_LATER: Final = {"capfilt_added_later": True}
_OURS: Final = "capfilt"
_digests: Final[dict[str, str]] = {}  # of files; a loaded class does not change with its file


def fingerprint(value: object) -> str:
    """Return 16 hex digits that identify `value`.

    Accepts None, bool, int, finite float, str, bytes, enums, and tuples, lists, string-keyed
    dicts and dataclasses of these. A dataclass counts by its class name and its fields, except
    those whose metadata is `NOT_IDENTITY`; one that is not capfilt's own also by its code.

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
        return {
            "dataclass": type(value).__qualname__,
            "fields": identity_fields(value, where),
            **code_identity(type(value)),
        }
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
        field.name: _canonical(_typed(field, value), f"{where}.{field.name}")
        for field in dataclasses.fields(value)
        if field.metadata.get("capfilt_identity", True) and not _is_default(field, value)
    }


def _typed(field: "dataclasses.Field[Any]", value: Any) -> object:  # any dataclass
    """Return a field's value, a whole number as a float where the field is one: 9 is 9.0 there."""
    found = getattr(value, field.name)
    kinds = (field.type, *typing.get_args(field.type))
    if float in kinds and int not in kinds:
        return _as_floats(found)
    return found


def _as_floats(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_as_floats(item) for item in value)
    return float(value) if type(value) is int else value


def code_identity(kind: type) -> dict[str, list[str]]:
    """Return the digests of the files that define a class and its bases, capfilt's own left out.

    Empty for a class of capfilt's: its code counts by the `version` of its stage.

    Raises:
        TypeError: the class was defined where there is no file.
    """
    digests = [
        _file_digest(base)
        for base in kind.__mro__
        if (top := _module_of(base).partition(".")[0]) != _OURS
        and top not in sys.stdlib_module_names
    ]
    return {"code": [kind.__qualname__, *sorted(set(digests))]} if digests else {}


def _module_of(kind: type) -> str:
    """Return the name of a class's module, also where `python -m` runs it as `__main__`."""
    spec = getattr(sys.modules.get(kind.__module__), "__spec__", None)
    return kind.__module__ if spec is None else str(spec.name)


def _is_default(field: "dataclasses.Field[Any]", value: Any) -> bool:  # any dataclass
    return "capfilt_added_later" in field.metadata and getattr(value, field.name) == field.default


def _file_digest(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        raise TypeError(
            f"the class {kind.__qualname__} was defined where there is no file, so a change of its "
            "code cannot be noticed; put it into a Python file and import it"
        )
    if file not in _digests:
        content = Path(file).read_bytes()
        _digests[file] = hashlib.blake2b(content, digest_size=8).hexdigest()
    return _digests[file]
