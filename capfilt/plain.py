"""Frozen dataclasses to JSON and back: how a run folder remembers its rounds.

Each dataclass is written with its class name, so that a field of several possible types (nucleus
sampling or beam search) comes back as what it was. Only classes that the type hints name are ever
built, and those of code that the user has named: a run folder from a stranger can fill in fields,
nothing else. A class that is not capfilt's is written with the name of its file.
"""

import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from capfilt.errors import CodeNeededError, DamageError
from capfilt.fingerprint import code_identity
from capfilt.usercode import user_classes

T = TypeVar("T")
_TYPE, _CODE = "type", "code"


def to_plain(value: object) -> Any:  # a JSON tree has no narrower type
    """Return `value` as dicts, lists and scalars, without fields that are `NOT_RECORDED`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: to_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.metadata.get("capfilt_recorded", True)
        }
        return {_TYPE: type(value).__name__, **_code_of(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def published_plain(value: object) -> Any:  # as above
    """Return `to_plain` of what a stranger to this machine may and should read.

    That is what makes an identity, and where it came from: no paths, speeds, proxies, agents.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: published_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.metadata.get("capfilt_identity", True) or "capfilt_provenance" in f.metadata
        }
        return {_TYPE: type(value).__name__, **_code_of(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [published_plain(item) for item in value]
    return value


def _code_of(cls: type) -> dict[str, str]:
    """Return the file that defines a class which is not capfilt's, or that it derives from."""
    if not code_identity(cls):
        return {}
    return {_CODE: Path(getattr(sys.modules[cls.__module__], "__file__", "") or "").name}


def from_plain(cls: type[T], plain: object) -> T:
    """Build a `cls` from what `to_plain` made of one.

    Raises:
        DamageError: fields are unknown, missing or of other types.
        CodeNeededError: it names a class of a user's whose file nobody has named.
    """
    try:
        built = _build(cls, plain, cls.__name__)
    except (TypeError, KeyError, ValueError) as error:
        raise DamageError(f"a saved configuration does not fit this capfilt: {error}") from error
    if not isinstance(built, cls):
        raise DamageError(f"a saved configuration holds no {cls.__name__}")
    return built


def _build(hint: Any, plain: Any, where: str) -> Any:  # type hints and JSON are both untyped
    if hint is Any or (plain is None and types.NoneType in typing.get_args(hint)):
        return plain
    if isinstance(plain, dict) and _CODE in plain:
        return _build_dataclass(_own_class(plain), plain, where)
    origin = typing.get_origin(hint)
    if origin in {typing.Union, types.UnionType}:
        return _build(_chosen(typing.get_args(hint), plain, where), plain, where)
    if origin is tuple and isinstance(plain, list):
        item = typing.get_args(hint)[0]
        return tuple(_build(item, one, where) for one in plain)
    if dataclasses.is_dataclass(hint) and isinstance(plain, dict):
        return _build_dataclass(hint, plain, where)
    if hint is float and isinstance(plain, int):
        return float(plain)
    literal = origin is typing.Literal
    if plain not in typing.get_args(hint) if literal else not isinstance(plain, origin or hint):
        raise TypeError(f"{where} is {plain!r}, not a {getattr(hint, '__name__', hint)}")
    return plain


def _build_dataclass(hint: Any, plain: dict[str, Any], where: str) -> Any:  # as above
    hints = typing.get_type_hints(hint)
    unknown = set(plain) - {field.name for field in dataclasses.fields(hint)} - {_TYPE, _CODE}
    if unknown:
        raise TypeError(f"{where} has no {', '.join(sorted(unknown))}")
    fields = {
        name: _build(hints[name], value, f"{where}.{name}")
        for name, value in plain.items()
        if name not in {_TYPE, _CODE}
    }
    return hint(**fields)


def _own_class(plain: dict[str, Any]) -> type:  # as above
    """Return the class of a user's that `plain` names."""
    name, file = plain[_TYPE], plain[_CODE]
    found = user_classes().get(name)
    if found is None:
        raise CodeNeededError(
            f"this run has code of its own, {name} of {file}, and a run folder never brings code "
            f"with it; name the file: --pipeline …/{file}"
        )
    return found


def _chosen(members: tuple[Any, ...], plain: Any, where: str) -> Any:  # as above
    """Return which member of a union `plain` is: by its class name, or by its plain type.

    A union with one class is of that class by any name, so that a class may be renamed.
    """
    classes = [member for member in members if dataclasses.is_dataclass(member)]
    if isinstance(plain, dict) and len(classes) == 1:
        return classes[0]
    for member in members:
        if isinstance(plain, dict) and getattr(member, "__name__", "") == plain[_TYPE]:
            return member
        if isinstance(member, type) and isinstance(plain, member):
            return member
        if member is float and type(plain) is int and int not in members:
            return member
        if typing.get_origin(member) in {tuple, typing.Literal}:
            return member
    raise TypeError(f"{where} is {plain!r}, which is none of {members}")
