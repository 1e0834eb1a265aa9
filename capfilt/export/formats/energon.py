"""Megatron Energon: the same tars, and what Energon wants to know of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from capfilt.export.formats.base import DataFile
from capfilt.export.formats.webdataset import WebDataset

_FOLDER: Final = ".nv-meta"
_VERSION: Final = "7.4.0"  # of Energon, whose layout this is
# JSON is YAML too, and has one way to write a name with a colon in it.
_SAMPLES: Final = {
    "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
    "field_map": {"image": "jpg,png,webp", "caption": "txt"},
}


@dataclass(frozen=True)
class Energon(WebDataset):
    """WebDataset with `.nv-meta`; `energon prepare --tar-index-only` makes its indices."""

    label: ClassVar[str] = "energon"
    told: ClassVar[str] = "the same tars with Megatron Energon's `.nv-meta`"

    def beside(self, files: Sequence[DataFile], split: str) -> Mapping[str, bytes]:
        """Return the description, the counts and the split of the tars."""
        counts = {file.path: file.rows for file in files}
        return {
            **super().beside(files, split),
            f"{_FOLDER}/dataset.yaml": _text(_SAMPLES),
            f"{_FOLDER}/.info.json": _text({"energon_version": _VERSION, "shard_counts": counts}),
            f"{_FOLDER}/split.yaml": _text({"split_parts": {split: list(counts)}, "exclude": []}),
        }


def _text(plain: Mapping[str, object]) -> bytes:
    return json.dumps(plain, indent=1).encode("ascii") + b"\n"
