"""What a benchmark says: lines of a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. `aim`: what it should be, in words, where there is an aim."""

    name: str
    value: float
    unit: str
    aim: str = ""
    note: str = ""

    def plain(self) -> dict[str, object]:
        """Return the line for machines."""
        return asdict(self)


def table(lines: Sequence[Line]) -> str:
    """Return aligned columns."""
    rows = [(line.name, _told(line.value), line.unit, line.aim, line.note) for line in lines]
    wide = [max(len(row[column]) for row in rows) for column in range(4)]
    told = [
        f"{name:<{wide[0]}}  {value:>{wide[1]}}  {unit:<{wide[2]}}  {aim:<{wide[3]}}  {note}"
        for name, value, unit, aim, note in rows
    ]
    return "\n".join(line.rstrip() for line in told)


def _told(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
