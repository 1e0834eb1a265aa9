"""The dataset card: what a stranger who finds the folder needs to know."""

import re
from typing import Any, Final

from capfilt.export.config import ExportConfig, Provenance
from capfilt.export.formats import Parquet, WebDataset
from capfilt.models.recipe import described
from capfilt.wording import counted, one_line

_BLIP: Final = "Select"  # the policy of BLIP itself
_RAW: Final = "RawWeb"
_SIZES: Final = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
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
    return f"""{_front(rows, config, version)}{_story(rows, config, recipe["select"])}

- Input: {_plain(provenance.source)}
{_models(recipe)}{_evaluation(provenance)}
- Made by capfilt {_plain(provenance.capfilt)}; `manifest.json` has the whole recipe and the SHA-256
  of every file.

## What became of the input

| rows | count |
| --- | ---: |
{_table(provenance)}

## What is in it

{_contents(config)}

`scores.parquet` has a row a text, kept or not: `key`, `url`, `origin`, `caption_index`, `text`, its
scores, whether it was `kept`, the `reason` of its row, and `dup_of`, the key of the image's kept
near-duplicate. `croissant.json` says all this to machines.
{_loading(config)}
## Rights

The pictures and the texts of the web belong to their owners; this dataset grants no rights to them.
"""


def _front(rows: int, config: ExportConfig, version: str) -> str:
    """Return the YAML at the head of the card: what the Hub shows, and what `datasets` reads."""
    tasks = "\n".join(f"- {task}" for task in config.format.tasks)
    return f"""---
license: {config.license}
task_categories:
{tasks}
size_categories:
- {size_category(rows)}
{_configs(config, version)}---

"""


def _configs(config: ExportConfig, version: str) -> str:
    """Return which files `datasets` reads, where it reads the format."""
    if not config.format.loader:
        return ""
    return f"""configs:
- config_name: default
  version: {version}
  data_files:
  - split: {config.split}
    path: data/{config.split}-*.{config.format.suffix}
"""


def size_category(rows: int) -> str:
    """Return the Hub's word for a number of rows."""
    digits = len(str(rows))
    if digits < 4:
        return f"n<{_SIZES[0]}"
    if digits - 3 >= len(_SIZES):
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[digits - 4]}<n<{_SIZES[digits - 3]}"


def _contents(config: ExportConfig) -> str:
    if isinstance(config.format, WebDataset):
        return f"`data/` has {config.format.told}.{_carried(config)}"
    if not isinstance(config.format, Parquet):
        return f"`data/` has {config.format.told}."
    return (
        "`image` (encoded bytes), `text`, `origin` (`web` or `synthetic`), `itm_score` and "
        "`itc_score` of the\ntext, `caption_index` (which synthetic text), `key` and `url` of the "
        "input's row, sizes in pixels,\n`sha256` of the image as it was fetched."
        f"{_carried(config)}"
    )


def _loading(config: ExportConfig) -> str:
    loader, files = config.format.loader, f"data/*.{config.format.suffix}"
    if not loader:
        return ""
    return f"""
```python
from datasets import load_dataset

pairs = load_dataset("{loader}", data_files="{files}", split="train")
```
"""


def _carried(config: ExportConfig) -> str:
    names = config.carried.names
    if not names:
        return ""
    return f"\n\nCarried from the input: {', '.join(_code(name) for name in names)}."


def _story(rows: int, config: ExportConfig, policy: dict[str, object]) -> str:
    pairs = f"{counted(rows, 'pair')} of an image and a text, one a row."
    if config.format.rows == "images":
        pairs = f"{counted(rows, 'image')} with their texts, one a row."
    if policy.get("type") == _RAW:
        return f"# Image-text pairs of the web\n\n{pairs} No model has seen them."
    return (
        f"# Image-text pairs, cleaned by CapFilt\n\n{pairs} The texts are those of the web and "
        f"synthetic ones;\n{_judged(policy)}"
    )


def _models(recipe: dict[str, dict[str, Any]]) -> str:  # JSON
    if recipe["select"].get("type") == _RAW:
        return "- Captioner and filter: none"
    captioner, matcher = judges_of(recipe)
    return f"- Captioner: {_plain(captioner)}\n{_filter(recipe, _plain(matcher))}"


def judges_of(recipe: dict[str, dict[str, Any]]) -> list[str]:  # JSON
    """Return captioner and filter in words; none where no model was asked."""
    if recipe["select"].get("type") == _RAW:
        return []
    return [_model(recipe["caption"]), _model(recipe["matching"])]


def _judged(policy: dict[str, object]) -> str:
    if policy.get("type", _BLIP) == _BLIP:
        return "each was judged alone by an image-text-matching filter (BLIP, arXiv 2201.12086)."
    return "which of them are here was decided over stored scores, by the policy below."


def _filter(recipe: dict[str, dict[str, Any]], model: str) -> str:  # JSON
    policy = recipe["select"]
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


def _evaluation(provenance: Provenance) -> str:
    told = provenance.evaluation
    return f"\n- Evaluation sets: {_plain(told)}" if told else ""


def _table(provenance: Provenance) -> str:
    return "\n".join(f"| {_plain(label)} | {count:,} |" for label, count in provenance.funnel)


def _code(text: str) -> str:
    """Return a name in code style, where Markdown knows no escapes."""
    return f"`{' '.join(text.split()).replace('`', '')}`"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: one line, nothing active."""
    return _ACTIVE.sub(r"\\\1", one_line(text))
