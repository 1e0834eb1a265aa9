"""The experiment's figure: every arm's mean and interval, a panel a measure, as SVG."""

from dataclasses import dataclass
from html import escape
from typing import Final

from pipelines.experiments.proof.design import ARMS
from pipelines.experiments.proof.table import MEASURES, Interval, Results

_SHOWN: Final = ("tr1", "ir1", "ir1_itc", "cider", "true")
_NAMES: Final = 170  # pixels for the arms' names
_PANEL: Final = 170
_GAP: Final = 24
_ROW: Final = 26
_TOP: Final = 40
_COLOURS: Final = ("#8a8f98", "#8a8f98", "#3b7dd8", "#e08a1e", "#2a9d55")
_OTHER: Final = "#7a5ea8"
_STYLE: Final = (
    "text{font:13px sans-serif;fill:#777}.e{font-size:10px}"
    "line{stroke-width:2}.g{stroke:#ccc;stroke-width:1}"
)


def picture(results: Results) -> str:
    """Return the SVG; a panel reaches over the intervals of its measure, its ends are told."""
    height = _TOP + _ROW * len(ARMS) + 30
    width = _NAMES + len(_SHOWN) * (_PANEL + _GAP)
    names = "".join(
        f'<text x="0" y="{_middle(row) + 4}">{escape(arm.name)}</text>'
        for row, arm in enumerate(ARMS)
    )
    panels = "".join(_panel(results, place, name) for place, name in enumerate(_SHOWN))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f"<style>{_STYLE}</style>{names}{panels}</svg>\n"
    )


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where values lie: `low` at the pixel `left`, `high` at its end."""

    left: int
    low: float
    high: float

    def x(self, value: float) -> float:
        return self.left + _PANEL * (value - self.low) / (self.high - self.low)


def _panel(results: Results, place: int, name: str) -> str:
    intervals = [results.measured[arm.name][name] for arm in ARMS]
    low = min(max(0.0, one.mean - one.half) for one in intervals)
    high = max(one.mean + one.half for one in intervals)
    panel = _Panel(_NAMES + place * (_PANEL + _GAP), low, high if high > low else low + 1.0)
    bottom = _middle(len(ARMS) - 1) + 12
    marks = "".join(_mark(panel, row, one) for row, one in enumerate(intervals))
    right = panel.left + _PANEL
    return (
        f'<text x="{panel.left}" y="18">{escape(MEASURES[name])}, %</text>'
        f'<line class="g" x1="{panel.left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="e" x="{panel.left}" y="{bottom + 14}">{100 * panel.low:.1f}</text>'
        f'<text class="e" x="{right}" y="{bottom + 14}" text-anchor="end">'
        f"{100 * panel.high:.1f}</text>{marks}"
    )


def _mark(panel: _Panel, row: int, one: Interval) -> str:
    colour = _COLOURS[row] if row < len(_COLOURS) else _OTHER
    low, mean, high = map(
        panel.x, (max(one.mean - one.half, panel.low), one.mean, one.mean + one.half)
    )
    y = _middle(row)
    return (
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" style="stroke:{colour}"/>'
        f'<circle cx="{mean:.1f}" cy="{y}" r="4" style="fill:{colour}"/>'
        f'<text class="e" x="{mean:.1f}" y="{y - 7}" text-anchor="middle">'
        f"{100 * one.mean:.1f}</text>"
    )


def _middle(row: int) -> int:
    return _TOP + _ROW * row + _ROW // 2
