"""What an input was cut into, by the identity of its files, so that a resume reads no row again.

`cuts/<id>.json` in the run folder names the manifest of an input whose rows depend on its files
alone: their places, sizes and times of change, and the options by which they are read.
"""

from dataclasses import asdict, dataclass
from typing import Final

from capfilt.errors import DamageError
from capfilt.fingerprint import fingerprint
from capfilt.inputs import Input, Piece, Remembered
from capfilt.ledger.indexing import PieceFiles, read_index
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.sealed import sealed, unsealed
from capfilt.plain import from_plain
from capfilt.store.location import Location

_FOLDER: Final = "cuts"
_VERSION: Final = 1  # raised when the same files come to other rows


@dataclass(frozen=True, slots=True)
class Cut:
    """One input as it was cut: what `open_input` says of it, and its manifest."""

    manifest: str
    rows: int
    described: str
    kept_stage: str | None


def recall(ledger: Ledger, identity: str | None, shard_rows: int) -> Cut | None:
    """Return what an input was cut into, or None where nothing (readable) tells."""
    if identity is None:
        return None
    try:
        return read_cut(_file(ledger, identity, shard_rows))
    except DamageError:
        return None


def remember(
    ledger: Ledger, data: Input, shard_rows: int, manifest: str, kept_stage: str | None
) -> None:
    """Write down what an input was cut into, where its rows depend on its files alone."""
    if data.identity is None or data.row_count_hint is None:
        return
    cut = Cut(manifest, data.row_count_hint, data.describe(), kept_stage)
    name = _file(ledger, data.identity, shard_rows).relative_to(ledger.root).as_posix()
    ledger.publisher.publish_bytes(name, sealed(asdict(cut)).encode("utf-8"))


class Memory:
    """What a run folder knows of inputs, for `open_input`."""

    def __init__(self, ledger: Ledger, shard_rows: int) -> None:
        self._ledger, self._shard_rows = ledger, shard_rows

    def __call__(self, identity: str) -> Remembered | None:
        """Return what is known of an input, or None."""
        cut = recall(self._ledger, identity, self._shard_rows)
        return None if cut is None else Remembered(cut.rows, cut.described, cut.kept_stage)

    def rows_of(self, piece: Piece) -> int | None:
        """Return how many rows a piece has that was read before, or None."""
        try:
            return len(read_index(PieceFiles(self._ledger.root), piece))
        except DamageError:
            return None


def cut_files(ledger: Ledger) -> list[Location]:
    """Return the files that say what inputs were cut into, sorted."""
    return sorted((ledger.root / _FOLDER).glob("*.json"))


def read_cut(file: Location) -> Cut:
    """Read such a file.

    Raises:
        DamageError: it is missing or unreadable.
    """
    try:
        return from_plain(Cut, unsealed(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, DamageError) as error:
        reason = " ".join(str(error).split())
        raise DamageError(
            f"{file} cannot be read ({reason}); `capfilt run` with that input makes it again"
        ) from error


def _file(ledger: Ledger, identity: str, shard_rows: int) -> Location:
    return ledger.root / _FOLDER / f"{fingerprint((_VERSION, identity, shard_rows))}.json"
