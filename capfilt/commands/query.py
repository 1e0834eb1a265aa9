"""`capfilt query`: SQL over a run's columns, by DuckDB."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.commands.advance import existing_ledger
from capfilt.engine.record import latest_round, plan_round
from capfilt.engine.views import views
from capfilt.errors import InputError
from capfilt.wording import counted, one_line

_SHOWN_ROWS: Final = 100  # for a person
_SHOWN_WIDTH: Final = 60  # characters of a value


@dataclass(frozen=True, slots=True)
class Answer:
    """The names of the columns and the rows of an answer; `more`: there are others."""

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]  # DuckDB's types
    more: bool = False

    def text(self) -> str:
        """Return a table for a person."""
        cells = [self.names, *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        rest = [f"… the first {_SHOWN_ROWS} rows; --json prints all, COPY (…) TO writes a file"]
        count = rest if self.more else [counted(len(self.rows), "row")]
        return "\n".join([*lines, *count])

    def plain(self) -> list[dict[str, Any]]:  # JSON
        """Return the rows for machines."""
        return [dict(zip(self.names, map(_plain, row), strict=True)) for row in self.rows]


def query(run_dir: Path, sql: str, all_rows: bool) -> Answer:
    """Ask the latest round of a run folder, of the views `rows` and `texts`.

    Without `all_rows` only as many rows are taken as a person is shown.

    Raises:
        InputError: there is no run, no DuckDB, or DuckDB refuses the question.
    """
    statements = view_sql(run_dir)
    try:
        import duckdb
    except ImportError as error:
        raise InputError(
            "capfilt query asks DuckDB, which is not installed: pip install 'capfilt[query]'"
        ) from error
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        try:
            connection.execute(statements)
            connection.execute(sql)
            names = tuple(column[0] for column in connection.description or ())
            wanted = (
                connection.fetchall if all_rows else lambda: connection.fetchmany(_SHOWN_ROWS + 1)
            )
            rows = wanted() if names else []
        except duckdb.Error as error:
            raise InputError(f"DuckDB: {one_line(str(error))}") from error
    more = not all_rows and len(rows) > _SHOWN_ROWS
    return Answer(names, rows if all_rows else rows[:_SHOWN_ROWS], more)


def view_sql(run_dir: Path) -> str:
    """Return the statements that create the views, for a DuckDB of one's own."""
    ledger = existing_ledger(run_dir)
    record, manifest = latest_round(ledger)
    recipe = record.round
    plan = plan_round(recipe, manifest, ledger)
    return views(ledger, plan, recipe.export.kept, recipe.export.carried.names)


def _shown(value: Any) -> str:  # of DuckDB's types
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = one_line(str(value))
    return text if len(text) <= _SHOWN_WIDTH else f"{text[: _SHOWN_WIDTH - 1]}…"


def _plain(value: Any) -> Any:  # JSON
    """Return a value as JSON has it; bytes in base64, other types in words."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, float):
        return json.loads(json.dumps(value), parse_constant=lambda _: None)  # NaN is no JSON
    return value if value is None or isinstance(value, bool | int | str) else str(value)
