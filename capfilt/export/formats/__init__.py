"""What a data file of an export is: the formats by name, and one of one's own.

A format says how tables of pairs become the bytes of a file. Which pairs go into which file, the
names of the files, the manifest and the resuming are the same for every format. To add one is a
module here, or a file beside this one's users, and its class in `Format`.
"""

from typing import Final, get_args

from capfilt.errors import InputError
from capfilt.export.formats.base import DataFile, ExportFormat, RowKind
from capfilt.export.formats.blip import BlipJson
from capfilt.export.formats.datacomp import DataCompUids
from capfilt.export.formats.energon import Energon
from capfilt.export.formats.lavis import Lavis
from capfilt.export.formats.llava import Llava
from capfilt.export.formats.messages import Messages
from capfilt.export.formats.parquet import Parquet
from capfilt.export.formats.webdataset import WebDataset
from capfilt.usercode import is_code, named_recipe

Format = (
    Parquet
    | WebDataset
    | Energon
    | Messages
    | Llava
    | BlipJson
    | Lavis
    | DataCompUids
    | ExportFormat
)
FORMATS: Final[dict[str, type[Format]]] = {
    kind.label: kind for kind in get_args(Format) if kind is not ExportFormat
}
__all__ = [
    "FORMATS",
    "DataFile",
    "ExportFormat",
    "Format",
    "Messages",
    "Parquet",
    "RowKind",
    "WebDataset",
    "named_format",
    "told_formats",
]


def told_formats() -> str:
    """Return what every format is, for a help text."""
    return "; ".join(f"{label}: {kind.told}" for label, kind in FORMATS.items())


def named_format(name: str) -> Format:
    """Return the format of a name, or one's own of `FILE.py:NAME`.

    Raises:
        InputError: there is none, or its code fails or says no suffix.
    """
    if not is_code(name):
        if name not in FORMATS:
            raise InputError(
                f"there is no export format {name!r}; give one of {', '.join(FORMATS)}, or "
                "FILE.py:NAME"
            )
        return FORMATS[name]()
    found = named_recipe(name, ExportFormat)
    if not found.suffix.replace(".", "").isalnum():
        raise InputError(f"{name}: its suffix is {found.suffix!r}; give letters, such as 'jsonl'")
    return found
