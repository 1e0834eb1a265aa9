"""Finding the address, caption and image columns by name; never guessing between two."""

import difflib
from dataclasses import dataclass
from typing import Final

from capfilt.errors import InputError
from capfilt.inputs.spec import (
    CAPTION_OPTION,
    IMAGE_OPTION,
    IMAGES_DIR_OPTION,
    KEEP_OPTION,
    KIND_OPTION,
    NO_CAPTIONS_OPTION,
    URL_OPTION,
)


@dataclass(frozen=True, slots=True)
class Role:
    """What a column is for: the option that names it, and the names known without it."""

    what: str
    option: str
    known: frozenset[str]  # lower case


URL: Final = Role(
    "address",
    URL_OPTION,
    frozenset({"url", "image_url", "img_url", "imageurl", "image_link"}),
)
CAPTION: Final = Role(
    "caption",
    CAPTION_OPTION,
    frozenset({"caption", "text", "alt_text", "alttext", "alt"}),
)
IMAGE: Final = Role(
    "image name",
    IMAGE_OPTION,
    frozenset({"image", "file_name", "filename", "image_path", "image_file", "file"}),
)


_COCO: Final = (
    "jq -c 'INDEX(.images[]; .id) as $i | .annotations | sort_by(.image_id)[] | "
    "{file_name: $i[.image_id | tostring].file_name, caption}'"
)


def find_column(role: Role, given: str | None, columns: tuple[str, ...], file: str) -> str:
    """Return the one column of `columns` that has this role.

    `given` is the user's own name for it. Without it, known names count in any case (LAION's
    `URL` and `TEXT` among them).

    Raises:
        InputError: there is none, more than one, or the same name stands twice.
    """
    found = maybe_column(role, given, columns, file)
    if found is None:
        raise InputError(
            f"{file}: no {role.what} column; the columns are {_listed(columns)}. "
            f"Give the right one with {role.option}.{_hint(role, columns)}"
        )
    return found


def maybe_column(role: Role, given: str | None, columns: tuple[str, ...], file: str) -> str | None:
    """Return the column as `find_column` does, or None where nothing was given and none is known.

    Raises:
        InputError: the given one is missing, or the choice is ambiguous.
    """
    if given is not None and given not in columns:
        raise InputError(
            f"{file}: no column {given!r}; the columns are {_listed(columns)}."
            f"{_closest(given, columns)} Correct {role.option}."
        )
    matches = [c for c in columns if (c == given if given else c.lower() in role.known)]
    if len(matches) > 1 and len(set(matches)) == 1:
        raise InputError(f"{file}: two columns are named {matches[0]!r}; rename one of them")
    if len(matches) > 1:
        raise InputError(
            f"{file}: {_listed(tuple(matches))} could each be the {role.what} column. "
            f"Say which with {role.option}."
        )
    return matches[0] if matches else None


def check_kept(names: tuple[str, ...], columns: tuple[str, ...], file: str) -> None:
    """Raise InputError where a column that is to be carried to the export is not there, or twice.

    `names` are the user's.
    """
    for name in names:
        if columns.count(name) != 1:
            fault = "no column" if name not in columns else "more than one column"
            raise InputError(
                f"{file}: {fault} {name!r}; the columns are {_listed(columns)}."
                f"{_closest(name, columns)} Correct {KEEP_OPTION}."
            )


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(repr(column[:60]) for column in columns[:20])
    return shown + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")


def _closest(given: str, columns: tuple[str, ...]) -> str:
    lower = {column.lower(): column for column in columns}
    close = difflib.get_close_matches(given.lower(), lower, n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


def _hint(role: Role, columns: tuple[str, ...]) -> str:
    """Say what else the table may be, where its columns tell."""
    if role is CAPTION:
        return f" Without texts, give {NO_CAPTIONS_OPTION}: every image is captioned."
    if {"images", "annotations"} <= set(columns):
        return f" If these are COCO's annotations, make JSON lines of them by: {_COCO}"
    if role is URL and any(column.lower() in IMAGE.known for column in columns):
        return (
            f" For images that are on this machine give {KIND_OPTION} images"
            f" (and {IMAGES_DIR_OPTION} where they lie elsewhere)."
        )
    return ""
