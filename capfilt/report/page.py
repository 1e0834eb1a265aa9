"""The report: one HTML file with the funnel, the scores and pictures of what was decided.

It opens nothing from anywhere: pictures are inside, there is no script, and every text is escaped,
since captions and addresses are written by strangers.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from typing import Final

from capfilt.ledger.publish import Publisher
from capfilt.ledger.tally import Tally
from capfilt.pixels import as_seen, open_image
from capfilt.report.failures import hosts_told, kinds_told
from capfilt.report.funnel import Funnel
from capfilt.report.samples import Sample, draw_samples
from capfilt.stage import ColumnReader
from capfilt.store.location import Location, is_there
from capfilt.wording import counted, one_line

_EACH: Final = 12
_THUMBNAIL: Final = 160
_LONGEST: Final = 160
_SEAL: Final = b"<!-- sha256 "
_END: Final = b"</body></html>"
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TITLES: Final = {
    "kept_both": "Kept: the web text and a synthetic one",
    "kept_web": "Kept: the web text alone",
    "kept_synthetic": "Kept: a synthetic text, the web text was rejected",
    "no_text_kept": "Dropped: the policy keeps no text",
    "short_text": "Dropped: the texts that score well are too short",
    "small_image": "Dropped: the image is too small",
    "extreme_aspect": "Dropped: the image is too long and narrow",
    "duplicate_image": "Dropped: near-duplicates of a better-scored image",
    "evaluation_image": "Dropped: the image stands in an evaluation set",
    "evaluation_text": "Dropped: the texts that were kept stand in an evaluation set",
    "failed_to_resize": "Failed: no usable image",
    "failed_to_download": "Failed: not fetched",
    "invalid_url": "Failed: no usable address",
    "duplicate_url": "Dropped: the address of an earlier row",
    "undecodable": "Failed: the image cannot be decoded",
}
_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--web:#3b7dd8;--syn:#e08a1e;--ok:#2a9d55;--no:#c0392b}
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1,h2,td,th{overflow-wrap:anywhere}
h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;max-width:100%}
td,th{padding:.15rem .6rem .15rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;overflow-wrap:normal}td.w{width:45%}
td:first-child{min-width:8.5rem}
.funnel{width:100%}
.bar{display:inline-block;height:.8rem;background:var(--web);border-radius:2px}
.key{width:.8rem}
svg{display:block;max-width:100%;height:auto}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(200px,100%),1fr));gap:1rem}
figure{margin:0;border:1px solid var(--line);border-radius:6px;padding:.6rem;overflow:hidden}
figure img{display:block;margin:0 auto .4rem;max-width:100%}
p{margin:.2rem 0;overflow-wrap:anywhere}small{opacity:.7}
.yes::before{content:"✓ ";color:var(--ok)}.not::before{content:"✗ ";color:var(--no)}
"""


def write_page(
    reader: ColumnReader, publisher: Publisher, name: str, funnel: Funnel, threshold: float | None
) -> Location:
    """Write `reports/<name>.html` in the run folder, once; returns where it lies.

    One that is not as it was written is moved away before: it can always be made again.
    """
    relative = f"reports/{name}.html"
    path = publisher.root / relative
    if is_there(path) and not is_whole(path):
        publisher.set_aside(path)
    if not path.is_file():
        page = render_page(funnel, draw_samples(reader, _EACH), threshold)
        publisher.publish_bytes(relative, _sealed(page.encode("utf-8", "replace")))
    return path


def is_whole(page: Location) -> bool:
    """Say whether a page is as it was written; pages of older versions have no digest."""
    content = page.read_bytes() if page.is_file() else b""
    body, mark, _ = content.rpartition(_SEAL)
    return content.endswith(_END) if not mark else _sealed(body) == content


def _sealed(page: bytes) -> bytes:
    """Return a page with its SHA-256 in a comment at its end."""
    return page + _SEAL + hashlib.sha256(page).hexdigest().encode() + b" -->\n"


def render_page(funnel: Funnel, samples: dict[str, list[Sample]], threshold: float | None) -> str:
    """Return the page as HTML; `threshold`: of ITM, where the policy has one."""
    sheets = [
        f"<h2>{escape(title)}</h2><div class=sheet>{''.join(map(_figure, samples[reason]))}</div>"
        for reason, title in _TITLES.items()
        if samples.get(reason)
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width">'
        f"<title>capfilt report</title><style>{_STYLE}</style></head><body>"
        f"<h1>What became of {counted(funnel.rows, 'row')}</h1>{_funnel_table(funnel)}"
        f"{_marked(funnel)}{_failures(funnel.failed)}"
        f"<h2>ITM scores</h2>{_histogram(funnel, threshold)}"
        f"{''.join(sheets)}</body></html>"
    )


def _marked(funnel: Funnel) -> str:
    """Return what was found of evaluation sets."""
    return f"<p>Evaluation sets: {escape(funnel.marked)}.</p>" if funnel.marked else ""


def _funnel_table(funnel: Funnel) -> str:
    rows = [
        f"<tr><td>{escape(label)}</td><td class=n>{count:,}</td><td class=w>"
        f'<span class=bar style="width:{100 * count / max(funnel.rows, 1):.1f}%"></span></td></tr>'
        for label, count in funnel.lines()
    ]
    texts = [
        f"<p>{origin} texts: {judged:,} judged, {kept:,} kept"
        + (f", {100 * (1 - kept / judged):.0f} % rejected</p>" if judged else "</p>")
        for origin, judged, kept in (
            ("web", funnel.web_judged, funnel.web_kept),
            ("synthetic", funnel.synthetic_judged, funnel.synthetic_kept),
        )
    ]
    return f"<table class=funnel>{''.join(rows)}</table>{''.join(texts)}"


def _failures(failed: Tally) -> str:
    """Return a table of kinds and one of hosts; nothing where nothing failed."""
    kinds = [
        (each.kind, each.rows, each.words)
        for reason in sorted(failed.kinds)
        for each in kinds_told(failed.kinds[reason])
    ]
    hosts = _table(("host", "rows", "kinds"), hosts_told(failed))
    if not kinds:
        return ""
    return (
        f"<h2>Failures by kind</h2>{_table(('kind', 'rows', 'meaning; what helps'), kinds)}"
        f"{f'<h2>Failures by host</h2>{hosts}' if failed.hosts else ''}"
    )


def _table(heads: tuple[str, str, str], rows: Sequence[tuple[str, int, str]]) -> str:
    name, number, words = heads
    lines = [
        f"<tr><td>{_foreign(each)}</td><td class=n>{count:,}</td><td>{_foreign(told)}</td></tr>"
        for each, count, told in rows
    ]
    head = f"<tr><th>{name}</th><th class=n>{number}</th><th>{words}</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def _histogram(funnel: Funnel, threshold: float | None) -> str:
    """Return an SVG: how many texts have which score, the web's and the synthetic, and the cut."""
    width, height, base = 640, 180, 150
    most = max([1, *funnel.web_scores, *funnel.synthetic_scores])
    step = width / len(funnel.web_scores)
    bars = []
    for shift, colour, counts in (
        (0.08, "var(--web)", funnel.web_scores),
        (0.5, "var(--syn)", funnel.synthetic_scores),
    ):
        for place, count in enumerate(counts):
            tall = base * count / most
            bars.append(
                f'<rect x="{(place + shift) * step:.1f}" y="{base - tall:.1f}" '
                f'width="{step * 0.4:.1f}" height="{tall:.1f}" fill="{colour}"/>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="histogram of ITM scores">{"".join(bars)}'
        f"{'' if threshold is None else _cut_line(threshold, width, base)}"
        f'<text x="0" y="{height - 12}" fill="currentColor" font-size="12">0</text>'
        f'<text x="{width - 8}" y="{height - 12}" fill="currentColor" font-size="12">1</text></svg>'
        '<p><span class="bar key"></span> web '
        '<span class="bar key" style="background:var(--syn)"></span> synthetic</p>'
    )


def _cut_line(threshold: float, width: int, base: int) -> str:
    cut = width * threshold
    return (
        f'<line x1="{cut}" x2="{cut}" y1="0" y2="{base}" stroke="currentColor" '
        'stroke-dasharray="4 3"/>'
        f'<text x="{min(cut + 4, width - 110)}" y="12" fill="currentColor" font-size="12">'
        f"threshold {threshold}</text>"
    )


def _figure(sample: Sample) -> str:
    texts = "".join(
        f'<p class="{"yes" if kept else "not"}">{_foreign(text) or "<i>no text</i>"} '
        f"<small>{origin}{'' if score is None else f' {score:.2f}'}</small></p>"
        for origin, text, score, kept in sample.texts
    )
    detail = f"<p><small>{_foreign(sample.detail)}</small></p>" if sample.detail else ""
    address = f"<p><small>{_foreign(sample.url)}</small></p>" if not sample.image else ""
    return f"<figure>{_thumbnail(sample.image)}{texts}{detail}{address}</figure>"


def _thumbnail(data: bytes | None) -> str:
    if data is None:
        return ""
    out = io.BytesIO()
    try:
        with open_image(data) as image:
            small = as_seen(image)
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            small.save(out, "JPEG", quality=80)
    except Exception:  # noqa: BLE001  # decoders of hostile bytes raise anything
        return "<p><small>cannot be decoded</small></p>"
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">'


def _foreign(text: str) -> str:
    """Return a stranger's text as HTML: shortened, inert, and with a direction of its own."""
    shown = escape(one_line(_short(text)))
    return f"<bdi>{shown}</bdi>" if shown else ""


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
