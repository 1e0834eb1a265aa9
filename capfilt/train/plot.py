"""The curves of a training as a picture, an SVG without any script."""

from collections.abc import Sequence
from html import escape
from typing import Final

_WIDTH: Final = 720
_HEIGHT: Final = 320
_EDGE: Final = 48
_POINTS: Final = 240
_COLOURS: Final = ("#3b7dd8", "#e08a1e", "#2a9d55", "#c0392b")
_NOT_LOSSES: Final = frozenset({"step", "lr", "norm"})


def loss_plot(metrics: Sequence[dict[str, float]]) -> str:
    """Return a picture of every loss over the steps, each averaged into at most 240 points."""
    names = [name for name in metrics[-1] if name not in _NOT_LOSSES] if metrics else []
    curves = {name: _thinned([line[name] for line in metrics]) for name in names}
    top = max((value for curve in curves.values() for value in curve), default=1.0)
    lines = [
        _curve(number, name, curve, top) for number, (name, curve) in enumerate(curves.items())
    ]
    axis = f'<path d="M{_EDGE} {_EDGE / 2}V{_HEIGHT - _EDGE}H{_WIDTH - 12}" class="a"/>'
    ends = (
        f'<text x="4" y="{_EDGE / 2 + 4}">{top:.2f}</text>'
        f'<text x="{_EDGE - 12}" y="{_HEIGHT - _EDGE}">0</text>'
        f'<text x="{_WIDTH - 12}" y="{_HEIGHT - _EDGE + 18}" text-anchor="end">'
        f"{len(metrics):,} steps</text>"
    )
    style = "text{font:12px sans-serif;fill:#888}path{fill:none;stroke-width:1.6}.a{stroke:#888}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f"<style>{style}</style>{axis}{ends}{''.join(lines)}</svg>\n"
    )


def _thinned(values: list[float]) -> list[float]:
    size = max(1, -(-len(values) // _POINTS))
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def _curve(number: int, name: str, values: list[float], top: float) -> str:
    across = (_WIDTH - 12 - _EDGE) / max(1, len(values) - 1)
    down = (_HEIGHT - 1.5 * _EDGE) / (top or 1.0)
    points = " ".join(
        f"{_EDGE + place * across:.1f},{_HEIGHT - _EDGE - value * down:.1f}"
        for place, value in enumerate(values)
    )
    colour = _COLOURS[number % len(_COLOURS)]
    label = f'<text x="{_EDGE + 8 + 90 * number}" y="{_HEIGHT - 12}" style="fill:{colour}">'
    return f'<path d="M{points}" stroke="{colour}"/>{label}{escape(name)}</text>'
