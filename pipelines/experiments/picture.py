"""The picture of a report that README shows: the funnel of a run, and some of its pairs.

python -m pipelines.experiments.picture runs/bootstrap docs/report.svg
"""

import base64
import io
import sys
from html import escape
from pathlib import Path
from typing import Final

from PIL import Image

from capfilt.engine.plan import RunReader
from capfilt.engine.record import latest_round, plan_round
from capfilt.engine.status import run_outcome
from capfilt.ledger.ledger import Ledger
from capfilt.report.funnel import Funnel, count_funnel
from capfilt.report.samples import Sample, draw_samples
from capfilt.wording import counted

_WIDTH: Final = 860
_LINE: Final = 20
_CARD: Final = 205
_SIDE: Final = 112
_SHOWN: Final = ("kept_both", "kept_synthetic", "no_text_kept")
_EACH: Final = {"kept_both": 1, "kept_synthetic": 2, "no_text_kept": 1}
_LONGEST: Final = 31  # characters of a line
_STYLE: Final = (
    "text{font:12.5px system-ui,sans-serif;fill:#222}.h{font-weight:600;font-size:15px}"
    ".s{fill:#777;font-size:11px}.y{fill:#2a9d55}.n{fill:#c0392b}"
)


def picture(run: Path) -> str:
    """Return the SVG of a finished run.

    Raises:
        InputError: the folder is no run.
    """
    ledger = Ledger(run)
    record, manifest = latest_round(ledger)
    plan = plan_round(record.round, manifest, ledger)
    reader = RunReader(ledger, plan)
    funnel = count_funnel(reader, manifest.rows, run_outcome(ledger, plan).failed)
    drawn = draw_samples(reader, max(_EACH.values()))
    samples = [one for reason in _SHOWN for one in drawn.get(reason, [])[: _EACH[reason]]]
    bars = _bars(funnel)
    top = 60 + _LINE * len(bars)
    cards = [_card(sample, 14 + _CARD * place, top) for place, sample in enumerate(samples)]
    height = top + _SIDE + 100
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}">'
        f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
        f'<text class="h" x="14" y="26">What became of {counted(funnel.rows, "row")}</text>'
        f"{''.join(bars)}{''.join(cards)}</svg>\n"
    )


def _bars(funnel: Funnel) -> list[str]:
    widest = _WIDTH - 250
    return [
        f'<text x="14" y="{48 + _LINE * place}">{escape(label)}</text>'
        f'<text x="200" y="{48 + _LINE * place}" text-anchor="end">{rows:,}</text>'
        f'<rect x="212" y="{38 + _LINE * place}" height="12" rx="2" fill="#3b7dd8" '
        f'width="{max(1.0, widest * rows / funnel.rows):.0f}"/>'
        for place, (label, rows) in enumerate(funnel.lines())
    ]


def _card(sample: Sample, x: int, y: int) -> str:
    lines = []
    for origin, text, score, kept in sample.texts[:2]:
        mark = '<tspan class="y">✓</tspan>' if kept else '<tspan class="n">✗</tspan>'
        told = "" if score is None else f" {score:.2f}"
        lines.append(f'<tspan class="s">{mark} {origin}{told}</tspan>')
        lines.append(escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"))
    texts = [
        f'<text x="{x}" y="{y + _SIDE + 18 + 17 * place}">{line}</text>'
        for place, line in enumerate(lines)
    ]
    return (
        f'<image x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" href="{_inside(sample)}"/>'
        f"{''.join(texts)}"
    )


def _inside(sample: Sample) -> str:
    """Return a picture as an address that holds it."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(sample.image or b"")) as image:
        image.convert("RGB").resize((_SIDE, _SIDE)).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(Path(sys.argv[1])), encoding="utf-8")
