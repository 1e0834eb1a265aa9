"""The dataset card: what a stranger who finds the folder needs to know."""

import re
from typing import Any, Final

from capfilt.export.config import RESERVED, ExportConfig, Provenance
from capfilt.export.kept import Kept
from capfilt.models.recipe import described
from capfilt.wording import counted, one_line

_BLIP: Final = "Select"  # the policy of BLIP itself
_RAW: Final = "RawWeb"
_ACTIVE: Final = re.compile(r"([\\`*_{}\[\]()#+!|<>&~$])")


def data_version(digest: str) -> str:
    """Return a version of the form that `datasets` knows, from a dataset's digest.

    `datasets` keeps what it loaded by the folder's last name and this version: without one, two
    exports that lie in folders of one name, one after the other, are taken for the same.
    """
    return ".".join(str(int(digest[start : start + 5], 16)) for start in (0, 5, 10))


def dataset_card(
    rows: int, config: ExportConfig, provenance: Provenance, version: str = "0.0.0"
) -> str:
    """Return README.md: YAML that `datasets` reads, then the story of the data."""
    recipe = provenance.recipe
    return f"""{_front(config, version)}{_story(rows, recipe["select"])}

- Input: {_plain(provenance.source)}
{_models(recipe)}
- Made by capfilt {_plain(provenance.capfilt)}; `manifest.json` has the whole recipe and the SHA-256
  of every file.

## What became of the input

| rows | count |
| --- | ---: |
{_table(provenance)}

## Columns

`image` (encoded bytes), `text`, `origin` (`web` or `synthetic`), `itm_score` and `itc_score` of the
text, `caption_index` (which synthetic text), `key` and `url` of the input's row, sizes in pixels,
`sha256` of the image as it was fetched.{_carried(recipe)}
{_loading(config)}
## Rights

The pictures and the texts of the web belong to their owners; this dataset grants no rights to them.
"""


def _front(config: ExportConfig, version: str) -> str:
    """Return the YAML at the head of the card, for formats that `datasets` reads."""
    if not config.format.loader:
        return ""
    return f"""---
configs:
- config_name: default
  version: {version}
  data_files:
  - split: {config.split}
    path: data/{config.split}-*.{config.format.suffix}
---

"""


def _loading(config: ExportConfig) -> str:
    loader, files = config.format.loader, f"data/*.{config.format.suffix}"
    if not loader:
        return f"\nThe data are `{files}`, in a format of their maker's own.\n"
    return f"""
```python
from datasets import load_dataset

pairs = load_dataset("{loader}", data_files="{files}", split="train")
```
"""


def _carried(recipe: dict[str, dict[str, Any]]) -> str:  # JSON
    kept = recipe.get("export", {}).get("kept")
    if not kept:
        return ""
    names = Kept(kept["stage"], tuple(kept["names"]), tuple(kept["types"])).exported(RESERVED).names
    return f"\n\nCarried from the input: {', '.join(_code(name) for name in names)}."


def _story(rows: int, policy: dict[str, object]) -> str:
    pairs = f"{counted(rows, 'pair')} of an image and a text, one a row."
    if policy.get("type") == _RAW:
        return f"# Image-text pairs of the web\n\n{pairs} No model has seen them."
    return (
        f"# Image-text pairs, cleaned by CapFilt\n\n{pairs} The texts are those of the web and "
        f"synthetic ones;\n{_judged(policy)}"
    )


def _models(recipe: dict[str, dict[str, Any]]) -> str:  # JSON
    if recipe["select"].get("type") == _RAW:
        return "- Captioner and filter: none"
    return f"- Captioner: {_plain(_model(recipe['caption']))}\n{_filter(recipe)}"


def _judged(policy: dict[str, object]) -> str:
    if policy.get("type", _BLIP) == _BLIP:
        return "each was judged alone by an image-text-matching filter (BLIP, arXiv 2201.12086)."
    return "which of them are here was decided over stored scores, by the policy below."


def _filter(recipe: dict[str, dict[str, Any]]) -> str:  # JSON
    policy = recipe["select"]
    model = _plain(_model(recipe["matching"]))
    if policy.get("type", _BLIP) == _BLIP:
        whose = policy.get("origins", "both")
        texts = "" if whose == "both" else f", of the {whose} texts alone"
        return f"- Filter: {model}, threshold {policy['threshold']}{texts}"
    figures = ", ".join(f"{k} {v}" for k, v in policy.items() if k not in {"type", "dedup"})
    lines = [f"- Filter: {model}"]
    if recipe.get("scorer"):
        lines.append(f"- Scorer: {_plain(_model(recipe['scorer']))}")
    return "\n".join([*lines, f"- Policy: {_plain(str(policy['type']))}, {_plain(figures)}"])


def _model(stage: dict[str, dict[str, str]]) -> str:
    model = stage["model"]
    if not model["digest"]:
        return f"{stage['type']} of {stage['code']}"
    name = described(model["name"], model.get("commit"), model.get("base"))
    return f"{name} (weights {model['digest']})"


def _table(provenance: Provenance) -> str:
    return "\n".join(f"| {_plain(label)} | {count:,} |" for label, count in provenance.funnel)


def _code(text: str) -> str:
    """Return a name in code style, where Markdown knows no escapes."""
    return f"`{' '.join(text.split()).replace('`', '')}`"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: one line, nothing active."""
    return _ACTIVE.sub(r"\\\1", one_line(text))
