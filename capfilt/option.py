"""One declaration of an option: on the field of the frozen recipe that it sets.

Type and default are the field's own; `option` adds what a user reads and what a value must be. The
command line's flags, their help with its defaults, the keywords of `RoundOptions` and the checks of
a pipeline file all come from it, so adding an option is adding a field.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from capfilt.errors import InputError
from capfilt.fingerprint import ADDED_LATER, NOT_IDENTITY, NOT_RECORDED

T = TypeVar("T")
REQUIRED: Final[Any] = dataclasses.MISSING  # a field that has no default
_KEY: Final = "capfilt_option"
_HINTS: Final[dict[type, dict[str, Any]]] = {}  # resolving them is slow

# The headings of the help.
INPUT: Final = "Input"
MODELS: Final = "Models"
DECODING: Final = "Decoding"
DOWNLOAD: Final = "Download"
POLICY: Final = "Policy and export"
WORK: Final = "Work"


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of numbers; None is no bound. `at_least` and `at_most` are in it, the others not."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Say whether a number is in the range; NaN is in none."""
        return (
            not math.isnan(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def text(self) -> str:
        """Return the range in words, such as `above 0 and at most 1`."""
        parts = [
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        ]
        return " and ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)


@dataclass(frozen=True, slots=True)
class Option:
    """What `option` says of a field besides its type and default.

    `flag` is the name on the command line where it is not the field's own; `panel` the heading of
    the help under which it stands. `given_as` is the type on the command line where the field's
    own cannot be typed there (a model is given by its name), `shown` the default in the same terms,
    and `read` makes the field's value of what was given.
    """

    help: str
    flag: str | None = None
    panel: str | None = None
    given_as: Any = None  # a type hint
    shown: str | None = None
    read: Callable[[Any], object] | None = None
    bounds: Bounds = Bounds()

    def value_of(self, given: object) -> object:
        """Return the field's value for what was given on the command line."""
        return given if self.read is None else self.read(given)


def option(
    default: T,
    help: str,
    *,
    flag: str | None = None,
    panel: str | None = None,
    given_as: Any = None,  # a type hint
    shown: str | None = None,
    read: Callable[[Any], object] | None = None,
    identity: bool = True,
    added_later: bool = False,
    recorded: bool = True,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> T:
    """Declare a field of a frozen dataclass as an option; see `Option`.

    `default` may be `REQUIRED`. `identity` False: the value changes speed or place but not what
    comes out, so that it is no part of a stage's id. `added_later`: the default gives what came out
    before there was this option. `recorded` False: it belongs to the machine or may hold a secret;
    a run folder does not remember it, and it is neither shown nor compared. The bounds hold for
    numbers, and for each number of a tuple.
    """
    bounds = Bounds(at_least, above, at_most, below)
    declared = Option(help, flag, panel, given_as, shown, read, bounds)
    kind = ({} if identity else NOT_IDENTITY) | (ADDED_LATER if added_later else {})
    kind |= {} if recorded else NOT_RECORDED
    metadata = {_KEY: declared, **kind}
    field: T = dataclasses.field(
        default=default, metadata=metadata, repr=recorded, compare=recorded
    )
    return field


def check_options(recipe: object) -> None:
    """Check every option of a dataclass against its type's words and its bounds.

    Raises:
        InputError: a value is out of its range, or is none of the words.
    """
    for field, declared in options_of(type(recipe)):
        value = getattr(recipe, field.name)
        words = words_of(hints_of(type(recipe))[field.name])
        if words and isinstance(value, str) and value not in words:
            raise InputError(f"{field.name} is {value!r}; it must be one of {', '.join(words)}")
        for number in value if isinstance(value, tuple) else (value,):
            if _is_number(number) and not declared.bounds.hold(number):
                raise InputError(
                    f"{field.name} is {number}; it must be {declared.bounds.text() or 'a number'}"
                )


def words_of(hint: object) -> tuple[str, ...]:
    """Return the words of a Literal, also inside a union; empty for any other type."""
    if typing.get_origin(hint) is Literal:
        return tuple(word for word in typing.get_args(hint) if isinstance(word, str))
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return tuple(word for part in typing.get_args(hint) for word in words_of(part))
    return ()


def hints_of(recipe: type) -> dict[str, Any]:  # type hints are untyped
    """Return the types of a dataclass's fields."""
    if recipe not in _HINTS:
        _HINTS[recipe] = typing.get_type_hints(recipe)
    return _HINTS[recipe]


def options_of(recipe: type) -> "tuple[tuple[dataclasses.Field[Any], Option], ...]":
    """Return the fields of a dataclass that are options, with what was declared of them."""
    kind: Any = recipe  # a dataclass
    fields = ((field, field.metadata.get(_KEY)) for field in dataclasses.fields(kind))
    return tuple((field, declared) for field, declared in fields if declared is not None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
