"""Names in every store that capfilt writes: what is unfinished, what was moved away."""

from typing import Final

TMP_DIR: Final = ".tmp"
DAMAGED_DIR: Final = "damaged"
