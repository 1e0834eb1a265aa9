"""The input formats by name: how their files are called, and what opens them.

To add one is a module in this folder and a line here. A format of tables opens a file as a `Table`;
any other opens all files of its part of the input. Both are imported when they are needed.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capfilt.usercode import is_code

if TYPE_CHECKING:
    from capfilt.inputs.sources import Source
    from capfilt.inputs.spec import InputSpec
    from capfilt.inputs.tables import Table

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Format:
    """An input format. `table` and `files` are `module:function`, one of them.

    `suffixes` end the names of its files, `binary` ones of which are compressed inside. `table`
    takes (path, encoding), `files` takes (InputSpec, paths).
    """

    name: str
    suffixes: tuple[str, ...] = ()
    table: str = ""
    files: str = ""
    binary: bool = False

    def open_table(self, path: Path, encoding: str) -> "Table":
        """Open a file of a format of tables."""
        table: Table = _named(self.table)(path, encoding)
        return table

    def open_files(self, spec: "InputSpec", files: Sequence[Path]) -> "Source":
        """Open all files of one part of an input."""
        source: Source = _named(self.files)(spec, files)
        return source


def _named(place: str) -> Any:  # a function
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"capfilt.inputs.{module}"), name)


_ALL: Final = (
    Format("csv", (".csv",), "delimited:open_csv"),
    Format("tsv", (".tsv",), "delimited:open_tsv"),
    Format("jsonl", (".jsonl", ".ndjson", ".json"), "jsonlines:open_table"),
    Format("txt", (".txt",), "addresses:open_table"),
    Format("parquet", (".parquet",), "parquet:open_table", binary=True),
    Format("arrow", (".arrow", ".feather"), "arrow:open_table", binary=True),
    Format("img2dataset", files="img2dataset:open_shards"),
    Format("webdataset", files="webdataset:open_tars"),
    Format("images", files="images:open_folder"),
    Format("hf", files="pictures:open_pictures"),
    Format("export", files="pictures:open_export"),
)
FORMATS: Final = {each.name: each for each in _ALL}
SUFFIXES: Final = {suffix: each for each in _ALL for suffix in each.suffixes}


def is_format(name: str) -> bool:
    """Say whether an input can be of this format; `FILE.py:NAME` names one of the user's own."""
    return name == AUTO or name in FORMATS or is_code(name)


def names_told() -> str:
    """Return the names of the formats, for messages."""
    return ", ".join(FORMATS)
