"""Arrow files, streams or random-access files, mapped into memory: nothing of them is copied.

`datasets` keeps what it has as Arrow streams: its cache, and what `save_to_disk` writes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.refs import open_arrow_batches
from capfilt.inputs.tables import Wanted
from capfilt.inputs.typed import TypedTable, check_types, typed_batch

STATE: Final = "state.json"  # of a folder of `save_to_disk`
SPLITS: Final = "dataset_dict.json"  # of a folder that holds several of them


@dataclass(frozen=True, slots=True)
class ArrowTable(TypedTable):
    """An Arrow file."""

    @property
    def dialect(self) -> str:
        """Say how it is written."""
        return "Arrow"

    @classmethod
    def open(cls, path: Path) -> "ArrowTable":
        """Read the schema of `path`.

        Raises:
            InputError: it is torn, or not Arrow.
        """
        stamp = Stamp.of(path)
        with open_batches(path) as (schema, _):
            return cls(stamp, schema)

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what is wanted; see `Table.read`."""
        path, first = self.stamp.path, 0
        check_types(path, self.schema, wanted)
        with open_batches(path) as (_, batches):
            for whole in batches:
                whole.validate(full=True)  # offsets of a stranger's file may lead anywhere
                for start in range(0, whole.num_rows, block_rows):
                    batch = whole.slice(start, block_rows)
                    yield typed_batch(path, batch, wanted, first + start)
                first += whole.num_rows


@contextmanager
def open_batches(path: Path) -> Iterator[tuple[pa.Schema, list[pa.RecordBatch]]]:
    """Map an Arrow file; whatever Arrow says of it, now or later, becomes an InputError."""
    try:
        with path.open("rb") as file:
            yield open_arrow_batches(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as Arrow ({error}); "
            "it is torn or of another format: fetch or write it again"
        ) from error


def saved_files(folder: Path) -> list[Path] | None:
    """Return the data files of a folder of `save_to_disk` in their order; None: it is none.

    Raises:
        InputError: it holds several splits, or its description cannot be used.
    """
    if (folder / SPLITS).is_file():
        listed = load_json(folder / SPLITS).get("splits")
        splits = (
            [str(name) for name in listed] if isinstance(listed, list) and listed else ["train"]
        )
        raise InputError(
            f"{folder}: holds the splits {', '.join(splits)} of a dataset; name one of their "
            f"folders, such as {folder / splits[0]}"
        )
    if not (folder / STATE).is_file():
        return None
    state = load_json(folder / STATE)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder}: an old save_to_disk, whose rows are chosen by a list of indices; load it "
            "with `datasets`, call flatten_indices(), and save it again"
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / STATE}: names no data files; save the dataset again"
        ) from error
    for name in names:
        if name != Path(name).name or not (folder / name).is_file():
            raise InputError(f"{folder / STATE}: names the file {name!r}, which is not beside it")
    return [folder / name for name in names]


def load_json(path: Path) -> dict[str, Any]:  # JSON
    """Read a JSON object.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); save the dataset again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is no JSON object; save the dataset again")
    return value


def open_table(path: Path, encoding: str) -> ArrowTable:
    """Open a file; its texts are UTF-8 whatever `encoding` says."""
    return ArrowTable.open(path)
