"""The flags of a tree of recipes, and a recipe with what was given by flag changed.

A recipe is a frozen dataclass whose fields are options or recipes again. Where several recipes
declare one flag, it sets each of them that is there.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from capfilt.errors import InputError
from capfilt.option import Option, hints_of, options_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `name` with underscores, the type it is given as, its help with the defaults."""

    name: str
    hint: Any  # a type hint, without None
    help: str
    panel: str | None


def flags_of(*recipes: type, identity: bool = True) -> dict[str, Flag]:
    """Return the flags of these recipes and of all recipes within them, in their order.

    `identity` False: only those that change speed or place but not what comes out.
    """
    homes: dict[str, list[_Home]] = {}
    for recipe in recipes:
        for home in _homes(recipe):
            if home.identity and not identity:
                continue
            same = [h for h in homes.setdefault(home.name, []) if h.owner is home.owner]
            homes[home.name] += [] if same else [home]
    return {name: _flag(name, found) for name, found in homes.items()}


def replaced(base: T, given: Mapping[str, object]) -> T:
    """Return a recipe with every option changed that `given` names and that it has.

    None and flags that it lacks change nothing; recipes within it are changed likewise.
    """
    recipe: Any = base  # any dataclass
    changes: dict[str, object] = {}
    options = {field.name: declared for field, declared in options_of(type(recipe))}
    for field in dataclasses.fields(recipe):
        declared, value = options.get(field.name), getattr(recipe, field.name)
        wanted = given.get(declared.flag or field.name) if declared else None
        if declared is not None and wanted is not None:
            changes[field.name] = declared.value_of(wanted)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = replaced(value, given)
    changes = {n: v for n, v in changes.items() if v is not getattr(recipe, n)}
    changed: T = dataclasses.replace(recipe, **changes) if changes else base
    return changed


def constructed(recipe: type[T], given: Mapping[str, object], **fixed: object) -> T:
    """Build a recipe from what was given by flag; what is None keeps the field's default."""
    wanted = {
        field.name: declared.value_of(value)
        for field, declared in options_of(recipe)
        if (value := given.get(declared.flag or field.name)) is not None
    }
    return recipe(**{**wanted, **fixed})


def check_names(given: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Refuse a flag that there is none of.

    Raises:
        InputError: with the closest name that there is.
    """
    for name in given.keys() - known.keys():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"there is no option {name!r}{hint}")


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a flag sets something: a field of a recipe."""

    name: str
    owner: type
    declared: Option
    hint: Any
    default: object
    identity: bool


def _homes(recipe: Any) -> Iterator[_Home]:  # a dataclass
    hints, options = hints_of(recipe), dict(_by_name(recipe))
    for field in dataclasses.fields(recipe):
        hint = hints[field.name]
        if declared := options.get(field.name):
            name, own = declared.flag or field.name, declared.given_as or _without_none(hint)
            identity = field.metadata.get("capfilt_identity", True)
            yield _Home(name, recipe, declared, own, field.default, identity)
        for inner in _recipes_in(hint):
            yield from _homes(inner)


def _by_name(recipe: type) -> Iterator[tuple[str, Option]]:
    for field, declared in options_of(recipe):
        yield field.name, declared


def _recipes_in(hint: object) -> tuple[type, ...]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return (hint,)
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return tuple(r for part in typing.get_args(hint) for r in _recipes_in(part))
    return ()


def _without_none(hint: Any) -> Any:  # type hints are untyped
    if typing.get_origin(hint) not in {typing.Union, types.UnionType}:
        return hint
    rest = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return rest[0] if len(rest) == 1 else hint


def _flag(name: str, homes: list[_Home]) -> Flag:
    first = homes[0].declared
    labels = [label for home in homes if (label := getattr(home.owner, "label", None))]
    owners = f" ({', '.join(labels)})" if labels else ""
    return Flag(name, homes[0].hint, f"{first.help}{owners}{_defaults(homes)}", first.panel)


def _defaults(homes: list[_Home]) -> str:
    """Return the default as help shows it; of each owner by its label where they differ."""
    told = [(home, text) for home in homes if (text := _shown(home)) is not None]
    if not told:
        return ""
    if len({text for _, text in told}) == 1 and len(told) == len(homes):
        return f" [default: {told[0][1]}]"
    each = (f"{getattr(home.owner, 'label', home.owner.__name__)} {text}" for home, text in told)
    return f" [default: {', '.join(each)}]"


def _shown(home: _Home) -> str | None:
    if home.declared.shown is not None:
        return home.declared.shown or None
    default = home.default
    if default is None or default is dataclasses.MISSING or default is False or default == ():
        return None
    return f"{default:g}" if isinstance(default, float) else str(default)
