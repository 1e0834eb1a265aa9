"""Arguments that are places: a local path, or an address in a bucket where that is possible."""

from pathlib import Path

from capfilt.errors import InputError
from capfilt.store.location import Location, is_address, location


def place(given: str | Path) -> Location:
    """Read a run folder or an export's: a path, or `s3://`, `gs://`, `az://`."""
    return location(str(given))


def local_place(given: str | Path) -> Path:
    """Read a folder that must lie on this machine.

    Raises:
        InputError: it is an address.
    """
    if is_address(str(given)):
        raise InputError(
            "this command works in a local folder, no bucket; give a path (a run folder and "
            "exports may lie in a bucket: `capfilt run`, `export --to`)"
        )
    return Path(given)
