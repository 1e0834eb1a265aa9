"""Embeddings in a temporary file: all rows' are more than memory should hold."""

import tempfile
from typing import IO, Final

import numpy as np

from capfilt.stages.dedup.bands import Places
from capfilt.stages.dedup.neighbours import Vectors

_TYPE: Final = np.dtype("<f4")


class VectorFile:
    """Vectors of one length, appended in the order of their rows and read at any place.

    It lies where temporary files do (TMPDIR), and is gone when it is closed.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="capfilt-vectors-")  # noqa: SIM115  # closed by close
        self._rows, self._width = 0, 1

    def close(self) -> None:
        """Give the file up."""
        self._file.close()

    def append(self, vectors: Vectors) -> None:
        """Add vectors (rows, D)."""
        if len(vectors):
            self._rows, self._width = self._rows + len(vectors), vectors.shape[1]
            self._file.write(np.ascontiguousarray(vectors, _TYPE).data)

    def mapped(self) -> Vectors:
        """Return all vectors as they lie in the file; what is read of them is what costs."""
        if not self._rows:
            return np.zeros((0, self._width), _TYPE)
        self._file.flush()
        return np.memmap(self._file, _TYPE, "r", shape=(self._rows, self._width))

    def read(self, rows: Places) -> Vectors:
        """Return the vectors of these rows, in memory."""
        return np.ascontiguousarray(self.mapped()[rows])
