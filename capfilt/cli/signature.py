"""Command-line functions whose options come from recipes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from capfilt.flags import Flag

F = TypeVar("F", bound=Callable[..., Any])


def takes(*flags: Mapping[str, Flag]) -> Callable[[F], F]:
    """Give a command these flags, the first of each name; it gets them as `**given`.

    A flag that the user leaves out is None, so that the recipe's own value stays.
    """
    found: dict[str, Flag] = {}
    for some in flags:
        found = {**some, **found}
    ordered = [found[name] for name in dict.fromkeys(n for some in flags for n in some)]

    def changed(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in own}
        more = [_parameter(flag) for flag in ordered if flag.name not in taken]
        parameters = sorted([*own, *more], key=_place)
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what inspect reads
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return changed


def _parameter(flag: Flag) -> inspect.Parameter:
    # A flag that is a "no" itself has no opposite.
    words = [f"--{flag.name.replace('_', '-')}"] if flag.name.startswith("no_") else []
    told = typer.Option(*words, help=flag.help, rich_help_panel=flag.panel, show_default=False)
    hint: Any = flag.hint  # a type that is known at run time only
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(flag.name, kind, default=None, annotation=Annotated[hint | None, told])


def _place(parameter: inspect.Parameter) -> int:
    """Python wants positional parameters first; among its kind each keeps its place."""
    return int(parameter.kind)
