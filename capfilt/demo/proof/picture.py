"""The experiment's figure: every arm's mean and interval, a panel a measure, as SVG."""

from html import escape
from typing import Final

from capfilt.demo.proof.design import ARMS
from capfilt.demo.proof.table import MEASURES, Interval, Results

_SHOWN: Final = ("ir1", "tr1", "cider", "true")
_NAMES: Final = 170  # pixels for the arms' names
_PANEL: Final = 190
_GAP: Final = 24
_ROW: Final = 26
_TOP: Final = 40
_COLOURS: Final = ("#8a8f98", "#8a8f98", "#3b7dd8", "#e08a1e", "#2a9d55")
_OTHER: Final = "#7a5ea8"
_STYLE: Final = (
    "text{font:13px sans-serif;fill:#777}line{stroke-width:2}.g{stroke:#ccc;stroke-width:1}"
)


def picture(results: Results) -> str:
    """Return the SVG; each panel reaches from 0 to a little above its highest interval."""
    height = _TOP + _ROW * len(ARMS) + 12
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


def _panel(results: Results, place: int, name: str) -> str:
    left = _NAMES + place * (_PANEL + _GAP)
    intervals = [results.measured[arm.name][name] for arm in ARMS]
    top = max(one.mean + one.half for one in intervals) * 1.05 or 1.0
    bottom = _middle(len(ARMS) - 1) + 10
    marks = "".join(_mark(left, row, one, top) for row, one in enumerate(intervals))
    return (
        f'<text x="{left}" y="18">{escape(MEASURES[name])}, %</text>'
        f'<line class="g" x1="{left}" x2="{left}" y1="{_TOP - 8}" y2="{bottom}"/>{marks}'
    )


def _mark(left: int, row: int, one: Interval, top: float) -> str:
    colour = _COLOURS[row] if row < len(_COLOURS) else _OTHER
    low, mean, high = (
        left + _PANEL * max(0.0, min(value, top)) / top
        for value in (one.mean - one.half, one.mean, one.mean + one.half)
    )
    y = _middle(row)
    return (
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" style="stroke:{colour}"/>'
        f'<circle cx="{mean:.1f}" cy="{y}" r="4" style="fill:{colour}"/>'
        f'<text x="{min(mean, left + _PANEL - 30):.1f}" y="{y - 7}" style="font-size:10px">'
        f"{100 * one.mean:.1f}</text>"
    )


def _middle(row: int) -> int:
    return _TOP + _ROW * row + _ROW // 2
