"""An export on the Hugging Face Hub, by huggingface_hub's own client.

As in a folder, a manifest makes an export whole: it is uploaded last, and where another export is
replaced it goes first. An upload that was cut off goes on: what the hub has is not sent again.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from capfilt.errors import CapfiltError, DamageError, InputError, StorageError
from capfilt.export.place import MANIFEST, THEIRS, UNFINISHED, files_of, is_ours
from capfilt.export.verify import verify_export
from capfilt.ledger.publish import DAMAGED_DIR, TMP_DIR
from capfilt.progress import Say
from capfilt.wording import counted

_DATASET: Final = "dataset"
# What lies in an export's folder and is no part of it.
_LEFT_OUT: Final = (
    *(f"{TMP_DIR}/*", f"{DAMAGED_DIR}/*", f"{UNFINISHED}*", MANIFEST),
    *(".nv-meta/index.*", "*.tar.idx"),
)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where an export lies now: its address, the commit of its manifest, files and bytes."""

    url: str
    commit: str
    files: int
    bytes: int

    def text(self) -> str:
        """Return what a person reads."""
        return f"{counted(self.files, 'file')}, {self.bytes:,} B: {self.url}"

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        return {
            "url": self.url,
            "commit": self.commit,
            "files": self.files,
            "bytes": self.bytes,
        }


def push(folder: Path, name: str, private: bool, replace: bool, say: Say) -> Pushed:
    """Check an export, and upload what the dataset `name` (`org/name`) of the hub lacks of it.

    Raises:
        DamageError: the export is damaged or not finished; nothing was uploaded.
        InputError: the name is none, the hub refuses, or another export lies there and not
            `replace`.
        StorageError: the hub cannot be reached; the same call goes on.
    """
    _check(folder, name)
    say(f"verified: {folder}")
    names = [each for each in files_of(folder) if not THEIRS.fullmatch(each)]
    size = sum((folder / each).stat().st_size for each in names)
    try:
        url, commit = _upload(folder, name, set(names), private, replace)
    except CapfiltError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's client raises many unrelated kinds
        _refuse(name, error)
    return Pushed(url, commit, len(names), size)


def _upload(
    folder: Path, name: str, names: set[str], private: bool, replace: bool
) -> tuple[str, str]:
    """Bring the hub's dataset to what lies in the folder; returns its address and the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    url = str(api.create_repo(name, repo_type=_DATASET, private=private, exist_ok=True))
    there = set(api.list_repo_files(name, repo_type=_DATASET))
    if _holds(api, name, there, folder) and names <= there:
        return url, str(api.dataset_info(name).sha)
    stale = sorted(each for each in there - names if is_ours(each))
    if (stale or MANIFEST in there) and not replace:
        raise InputError(
            f"{name} holds another export, or a part of one; give --replace to replace it, or "
            "another name"
        )
    _remove(api, name, [*stale, *({MANIFEST} & there)])
    api.upload_folder(
        repo_id=name,
        repo_type=_DATASET,
        folder_path=folder,
        ignore_patterns=list(_LEFT_OUT),
        commit_message="Upload an export of capfilt",
    )
    done = api.upload_file(
        path_or_fileobj=folder / MANIFEST,
        path_in_repo=MANIFEST,
        repo_id=name,
        repo_type=_DATASET,
        commit_message="Upload the manifest of an export of capfilt: it is whole",
    )
    return url, str(done.oid)


def _holds(api: Any, name: str, there: set[str], folder: Path) -> bool:
    """Say whether the hub has the manifest of this export."""
    if MANIFEST not in there:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        held = api.hf_hub_download(name, MANIFEST, repo_type=_DATASET, local_dir=scratch)
        return Path(held).read_bytes() == (folder / MANIFEST).read_bytes()


def _remove(api: Any, name: str, paths: list[str]) -> None:
    """Remove files of another export, the manifest among them, in one commit."""
    from huggingface_hub import CommitOperationDelete

    if paths:
        api.create_commit(
            name,
            repo_type=_DATASET,
            operations=[CommitOperationDelete(path) for path in paths],
            commit_message="Remove another export of capfilt",
        )


def _check(folder: Path, name: str) -> None:
    """Refuse a name that no hub can have, and an export that is not whole."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r} is no name that a hub can have; give org/name") from error
    problems = verify_export(folder)
    if problems:
        first = problems[0]
        raise DamageError(
            f"{folder} is not uploaded: {counted(len(problems), 'problem')}, the first: "
            f"{first.path}: {first.detail}; `capfilt verify` tells all"
        )


def _refuse(name: str, error: Exception) -> NoReturn:
    """Say in one line why the hub's client failed, and what to do. A token is never in it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403}:
        raise InputError(
            f"the hub refuses to write {name} (status {status}); log in (`hf auth login`, or "
            "HF_TOKEN) with an account and a token that may write there"
        ) from error
    if status is not None and 400 <= status < 500 and status not in {408, 429}:
        raise InputError(f"the hub refuses {name} (status {status}); check the name") from error
    why = f"status {status}" if status is not None else type(error).__name__
    raise StorageError(
        f"{name} is not uploaded to its end ({why}); check the network and give the same command "
        "again: it goes on"
    ) from error
