"""The folder that an export is written to: the names in it, and what lies there.

A manifest makes an export whole. It comes last, and where an export is replaced it goes first, so
a folder without one holds nothing that calls itself done. Until then the folder has files whose
names begin with `.unfinished-`: which export is written, and the SHA-256 of every file of it.
"""

import contextlib
import re
import shlex
from pathlib import PurePath
from typing import Any, Final

from capfilt.errors import DamageError
from capfilt.ledger.publish import DAMAGED_DIR, TMP_DIR, Publisher
from capfilt.ledger.sealed import unsealed
from capfilt.store.location import Location
from capfilt.store.reading import names_below

MANIFEST: Final = "manifest.json"
CARD: Final = "README.md"
CROISSANT: Final = "croissant.json"
SCORES: Final = "scores.parquet"
DATA: Final = "data"
IMAGES: Final = "images"
UNFINISHED: Final = ".unfinished-"
PLAN: Final = f"{UNFINISHED}plan.json"
CLEARING: Final = f"{UNFINISHED}clearing"
_PART: Final = r"\w+-\d+-of-\d+"  # one of several files, by split and number
SUMS: Final = re.compile(rf"{IMAGES}/{_PART}\.sha256")  # which picture files there are
PICTURE: Final = re.compile(rf"{IMAGES}/[0-9a-f]{{3}}/[0-9a-f]+\.\w+")
_DATA_FILE: Final = re.compile(rf"{DATA}/{_PART}\.[\w.]+")
# What Energon writes into a folder that it reads.
THEIRS: Final = re.compile(rf"\.nv-meta/index\.\w+|{DATA}/{_PART}\.tar\.idx")
_BESIDE: Final = re.compile(
    r"\.nv-meta/(dataset\.yaml|split\.yaml|\.info\.json)|"
    + "|".join(re.escape(n) for n in (MANIFEST, CARD, CROISSANT, SCORES, f"{DATA}/sizes.json"))
)


def is_ours(name: str) -> bool:
    """Say whether a path below a folder is one that an export has, or a reader of it makes."""
    return any(kind.fullmatch(name) for kind in (_BESIDE, _DATA_FILE, SUMS, PICTURE, THEIRS))


def is_data(name: str) -> bool:
    """Say whether a file is one of those that the digest of an export is over."""
    kinds = (_DATA_FILE, SUMS)
    return not THEIRS.fullmatch(name) and any(kind.fullmatch(name) for kind in kinds)


def picture_path(key: str, extension: str) -> str:
    """Return where a picture file lies; keys are hashes, so that folders fill evenly."""
    return f"{IMAGES}/{key[:3]}/{key}.{extension}"


def load_manifest(folder: Location) -> dict[str, Any]:  # JSON
    """Read an export's manifest.

    Raises:
        DamageError: it is missing (the export is not finished) or unreadable.
    """
    try:
        return unsealed((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamageError(
            f"{folder / MANIFEST} is no manifest of an export ({reason}); `capfilt verify` tells "
            "more, `capfilt export` finishes an export"
        ) from error


def export_id(folder: Location, manifest: dict[str, Any]) -> str:  # JSON
    """Return which export a manifest is of; older ones of a run folder say it by their place."""
    return str(manifest.get("export") or folder.name.removeprefix("export-"))


def listed_pictures(root: Location, sums: str) -> list[tuple[str, str]]:
    """Return (SHA-256, path) of the pictures that a list of them has.

    Raises:
        DamageError: it is no such list.
    """
    lines = (root / sums).read_bytes().decode("ascii", errors="replace").splitlines()
    found = [tuple(line.split("  ", 1)) for line in lines]
    if any(len(each) != 2 or not PICTURE.fullmatch(each[1]) for each in found):
        raise DamageError(f"{root / sums} is no list of pictures; {anew_advice(root)}")
    return [(sha256, path) for sha256, path in found]


def is_begun(folder: Location) -> bool:
    """Say whether an export was begun in a folder, and is not finished."""
    begun = any((folder / name).exists() for name in (PLAN, CLEARING))
    return begun and not (folder / MANIFEST).exists()


def is_export(folder: Location) -> bool:
    """Say whether a folder holds an export, whole or in part."""
    return is_begun(folder) or any(map(is_ours, files_of(folder)))


def anew_advice(root: Location) -> str:
    """Say what to do about a damaged export; one in a run folder is checked with its run."""
    checked = root.parent if (root.parent / "stages").is_dir() else root
    return (
        f"`capfilt verify {shlex.quote(str(checked))} --repair` moves away what is damaged, and "
        "the command that wrote the export makes it again"
    )


def files_of(root: Location) -> list[str]:
    """Return the files of an export's folder, relative to it, without what capfilt has there."""
    return sorted(name for name in names_below(root) if not _is_scratch(name))


def _is_scratch(name: str) -> bool:
    first = name.partition("/")[0]
    return first in {TMP_DIR, DAMAGED_DIR} or first.startswith(UNFINISHED)


def note(publisher: Publisher, path: str, sha256: str) -> None:
    """Say that `path` of an unfinished export has that SHA-256, before it is published."""
    publisher.publish_bytes(_note_name(path, sha256), b"")


def is_noted(root: Location, path: str, sha256: str) -> bool:
    """Say whether an unfinished export wrote `path` with that SHA-256."""
    return (root / _note_name(path, sha256)).exists()


def _note_name(path: str, sha256: str) -> str:
    return f"{UNFINISHED}{sha256}-{PurePath(path).name}"


def tidy(root: Location) -> None:
    """Remove the notes of an export that is whole now."""
    with contextlib.suppress(OSError):  # they do no harm; another process may remove them too
        for path in root.glob(f"{UNFINISHED}*"):
            path.unlink(missing_ok=True)
