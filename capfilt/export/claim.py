"""Taking a folder for an export: what it may hold before, and how another export is replaced."""

from typing import Any

from capfilt.errors import DamageError, InputError
from capfilt.export.place import (
    CLEARING,
    MANIFEST,
    PLAN,
    UNFINISHED,
    anew_advice,
    export_id,
    files_of,
    is_ours,
    load_manifest,
)
from capfilt.export.verify import verify_export
from capfilt.ledger.publish import TMP_DIR, Publisher, explained
from capfilt.ledger.sealed import sealed, unsealed
from capfilt.store.location import Location


def check_claim(root: Location, wanted: str, replace: bool, expected: str = "") -> str | None:
    """Refuse a folder that `claim` would refuse, without writing; returns which export it holds.

    None: it is empty. `expected` is the export that the run knows to lie there, "" where it knows
    of none.

    Raises:
        InputError: it holds another export and not `replace`, or something that is no export.
        DamageError: what it holds cannot be told any more.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; give a folder to export to")
    if _is_cut_off(root):
        return ""
    held = _held_or_damaged(root, expected, replace)
    if held not in {None, wanted} and not replace:
        raise InputError(
            f"{root} holds another export{_told(root)}; give --replace to replace it as a whole, "
            "or another folder"
        )
    if replace:
        _check_strangers(root)
    return held


def claim(publisher: Publisher, wanted: str, replace: bool, expected: str = "") -> None:
    """Make sure that a folder holds nothing but the export `wanted`, whole or in part, or nothing.

    With `replace`, another or a damaged one is removed: no moment has a mixture with a manifest.
    See `check_claim`.
    """
    root = publisher.root
    held = check_claim(root, wanted, replace, expected)
    if held is None:
        publisher.publish_bytes(PLAN, sealed({"export": wanted}).encode("utf-8"))
    elif _is_cut_off(root) or (replace and not (held == wanted and _is_sound(root))):
        _replace(publisher, wanted)


def _is_cut_off(root: Location) -> bool:
    """Say whether somebody's --replace was cut off there."""
    return (root / CLEARING).exists() and not (root / MANIFEST).exists()


def _told(root: Location) -> str:
    if not (root / MANIFEST).exists():
        return ", unfinished"
    held = load_manifest(root)
    return f" ({held['rows']} rows, digest {str(held['digest'])[:12]})"


def _is_sound(root: Location) -> bool:
    return not (root / MANIFEST).exists() or not verify_export(root)


def _held_or_damaged(root: Location, expected: str, replace: bool) -> str | None:
    try:
        return _held(root, expected)
    except DamageError:
        if not replace:
            raise
        return ""


def _held(root: Location, expected: str) -> str | None:
    """Return which export lies in a folder, whole or in part; None: the folder is empty."""
    if (root / MANIFEST).exists():
        return export_id(root, _manifest_of(root, expected))
    if (root / PLAN).exists():
        try:
            return str(unsealed((root / PLAN).read_text(encoding="utf-8"))["export"])
        except (OSError, ValueError, KeyError) as error:
            if expected:
                return expected
            raise DamageError(
                f"{root} holds an export that was begun, and {PLAN} cannot be read; give "
                "--replace to write it anew"
            ) from error
    strangers = [path for path in root.glob("*") if path.name != TMP_DIR]
    if strangers and not expected:
        raise InputError(
            f"{root} is not empty ({strangers[0].name}), and no export; give an empty or new folder"
        )
    return expected if strangers else None


def _manifest_of(root: Location, expected: str) -> dict[str, Any]:  # JSON
    try:
        manifest = load_manifest(root)
        if not {"files", "rows", "digest"} <= set(manifest):
            raise DamageError("it says nothing of an export")
        return manifest
    except DamageError as error:
        if expected:
            raise DamageError(f"{root / MANIFEST} is damaged; {anew_advice(root)}") from error
        raise InputError(
            f"{root} holds a {MANIFEST} that is no export's; give an empty or new folder"
        ) from error


def _replace(publisher: Publisher, wanted: str) -> None:
    """Remove the export that lies in a folder, its manifest first, and begin another."""
    root = publisher.root
    _check_strangers(root)
    publisher.publish_bytes(CLEARING, b"")
    with explained(root):
        (root / MANIFEST).unlink(missing_ok=True)
        publisher.sync()
        for name in files_of(root):
            (root / name).unlink(missing_ok=True)
        for path in root.glob(f"{UNFINISHED}*"):
            if path.name != CLEARING:
                path.unlink(missing_ok=True)
        publisher.sync()
        publisher.publish_bytes(PLAN, sealed({"export": wanted}).encode("utf-8"))
        (root / CLEARING).unlink(missing_ok=True)


def _check_strangers(root: Location) -> None:
    strangers = [name for name in files_of(root) if not is_ours(name)]
    if strangers:
        raise InputError(
            f"{root} holds {strangers[0]}, which is of no export; move it away before --replace"
        )
