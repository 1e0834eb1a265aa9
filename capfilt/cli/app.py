"""The command line as a whole: its commands, each imported when it is called or asked for help."""

import importlib
from collections.abc import Callable
from typing import Annotated, Any, Final, NoReturn

import typer
import typer.core
import typer.main

from capfilt import __version__
from capfilt.cli import console
from capfilt.errors import exit_codes_told

# The room that has each command, and what the list of commands says of it.
COMMANDS: Final = {
    "demo": ("demo", "Run a whole round on a simulated web, on this machine alone"),
    "run": ("run", "Run a round, or go on with one"),
    "plan": ("run", "Say what `run` would do and what it costs; writes nothing"),
    "status": ("folder", "Say how far a run is"),
    "retry": ("folder", "Fetch again what failed in a way that can pass"),
    "export": ("folder", "Write the dataset of a finished run again"),
    "push": ("folder", "Upload an export to the Hugging Face Hub"),
    "query": ("folder", "Ask a run's rows, texts, scores and decisions by SQL"),
    "verify": ("folder", "Read everything again and find damage"),
    "gc": ("folder", "List what the latest round does not need, or remove it"),
    "train": ("train", "Train on exports: pre-train MED, fine-tune a captioner or a filter"),
    "rounds": ("rounds", "Run N bootstrap rounds: clean, train, clean with what came out"),
    "evaluate": ("evaluate", "Judge models: retrieval, captions, a filter"),
}
_PLAIN: Final[dict[str, Any]] = {  # typer's own options
    "rich_markup_mode": None,
    "add_completion": False,
    "pretty_exceptions_enable": False,
}


class _Sectioned(typer.core.TyperCommand):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # typer's own classes
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or own
                sections.setdefault(panel, []).append(record)
        for panel, records in sections.items():
            with formatter.section(panel):
                formatter.write_dl(records)


class _Commands(typer.core.TyperGroup):
    """Commands by name; listing them imports none of them.

    What ends one is told in one way, also while its libraries are still imported.
    """

    def invoke(self, ctx: Any) -> Any:  # typer's own copy of click has no public types
        """Run the command."""
        with console.errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:  # typer's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # typer's own classes
        if cmd_name not in COMMANDS:
            return None
        room = importlib.import_module(f"capfilt.cli.{COMMANDS[cmd_name][0]}")
        return _command(cmd_name, getattr(room, cmd_name))

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # as above
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in COMMANDS.items()])


app = typer.Typer(
    name="capfilt",
    cls=_Commands,
    help="Bootstrap clean image-text training data from noisy web pairs (CapFilt, BLIP).\n\n"
    + exit_codes_told(),
    no_args_is_help=True,
    **_PLAIN,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def _command(name: str, found: typer.Typer | Callable[..., None]) -> Any:  # typer's own class
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(**_PLAIN)
    alone.command(name, cls=_Sectioned)(found)
    return typer.main.get_command(alone)


def main() -> NoReturn:
    """Run the command line."""
    console.main(app)
