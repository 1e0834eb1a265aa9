"""`capfilt push`: an export to the Hugging Face Hub."""

from pathlib import Path

from capfilt.commands.advance import LATEST
from capfilt.errors import InputError
from capfilt.export.hub import Pushed
from capfilt.export.hub import push as push_export
from capfilt.export.place import is_export
from capfilt.progress import Say


def push(name: str, folder: Path, private: bool, replace: bool, say: Say) -> Pushed:
    """Upload an export, or the latest one of a run folder; see `export.hub`.

    Raises:
        InputError: the folder is neither.
    """
    chosen = folder / LATEST if (folder / LATEST).is_dir() else folder
    if not chosen.is_dir() or not is_export(chosen):
        raise InputError(f"{folder} is no export, and no run folder that has one")
    return push_export(chosen.resolve(), name, private, replace, say)
