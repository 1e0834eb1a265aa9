"""DataComp's subsets: the sorted uids of the images that are kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final

import numpy as np
import pyarrow as pa

from capfilt.errors import InputError
from capfilt.export.formats.base import ExportFormat, Pictures, RowKind

UID: Final = "uid"  # the column of DataComp's own metadata


@dataclass(frozen=True)
class DataCompUids(ExportFormat):
    """A NumPy array of `u8,u8`: uids of 128 bits, ascending, each once.

    A uid is that of the carried column `uid`, of 32 hex digits, where the export carries one
    (`--keep-columns uid`), else the row's key.
    """

    label: ClassVar[str] = "datacomp-uids"
    suffix: ClassVar[str] = "npy"
    told: ClassVar[str] = "DataComp's sorted list of uids, without pictures"
    rows: ClassVar[RowKind] = "images"
    pictures: ClassVar[Pictures] = "none"

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write the file; holds 16 bytes a row."""
        column = UID if UID in schema.names else "key"
        digits = [_halves(table[column].to_pylist()) for table in tables]
        uids = np.concatenate([np.zeros((0, 2), ">u8"), *digits]).astype("<u8")
        pairs = np.unique(np.ascontiguousarray(uids).view("<u8,<u8").reshape(-1))
        np.lib.format.write_array(out, pairs, allow_pickle=False)


def _halves(uids: list[str | None]) -> np.ndarray:
    try:
        found = [bytes.fromhex(uid or "") for uid in uids]
        if any(len(uid) != 16 for uid in found):
            raise ValueError
    except ValueError:
        raise InputError(
            "--format datacomp-uids: the column 'uid' has values that are no 32 hex digits; leave "
            "it out of --keep-columns, and keys are taken"
        ) from None
    return np.frombuffer(b"".join(found), ">u8").reshape(-1, 2)
