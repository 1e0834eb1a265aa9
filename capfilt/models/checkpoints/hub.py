"""Fetching a checkpoint from a hub, by huggingface_hub's own client.

The revision is resolved once, to a commit; everything is then fetched of that commit. Only what
says which kind of model it is comes first, so that a wrong model costs no weights. Where the hub
cannot be reached or does not answer, what lies in the client's cache is used.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capfilt.errors import ModelError
from capfilt.models.checkpoints.parts import ADAPTER_CONFIG, patterns, wanted

_CONFIG: Final = "config.json"
Check = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit's files in the client's cache."""

    folder: Path
    commit: str


def fetch(name: str, check: Check, *, weights: bool = True) -> Snapshot:
    """Return a hub's checkpoint, `org/name` or `org/name@revision`, fetching what is missing.

    `check` is given the folder when config.json, or adapter_config.json, is all that must be there.

    Raises:
        ModelError: it cannot be had; one line that says why and what to do. Or `check` raises it.
    """
    repository, _, revision = name.partition("@")
    _check_name(name, repository)
    _hush()
    folder = _begun(name, repository, revision or None)
    try:
        check(folder)
    except ModelError as error:
        raise type(error)(f"{name!r} cannot be used: {error}") from error
    commit = folder.name
    try:
        names = _listed(repository, commit)
    except Exception as error:  # noqa: BLE001 - the hub's client raises many unrelated kinds
        _refuse_partial(name, folder, _cached_names(repository, commit), weights, error)
        return Snapshot(folder, commit)
    try:
        _download(repository, commit, wanted(names, weights=weights))
    except Exception as error:  # as above
        raise ModelError(f"cannot get all of {name!r} from the hub: {told(error)}") from error
    return Snapshot(folder, commit)


def told(error: BaseException) -> str:
    """Return in one line why the hub's client failed, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return f"it is not in the hub's cache, and {told(error.__cause__)}"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (
            "it is gated; ask for access on its page, and log in (`hf auth login`, or HF_TOKEN) "
            "with the account that has it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; give a branch, a tag or a commit that it has"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return (
            "there is no such model there, or it is private; check the name, or log in "
            "(`hf auth login`, or HF_TOKEN)"
        )
    if status is not None:
        return f"the hub answers with status {status}; try again later, or download it by hand"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it once to fetch the model"
    return f"{type(error).__name__}: {_first_line(error)}; check the network and try again"


def _check_name(name: str, repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a folder nor a name that a hub can have; check the path, or give "
            "org/name or org/name@revision"
        ) from error


def _hush() -> None:
    """Keep the client's own lines, on every retry and file, out of logs and errors."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()


def _begun(name: str, repository: str, revision: str | None) -> Path:
    """Return a commit's folder in the cache, with the file in it that says what the model is."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for first in (_CONFIG, ADAPTER_CONFIG):
        try:
            return Path(hf_hub_download(repository, first, revision=revision)).parent
        except Exception as error:
            there = isinstance(error, EntryNotFoundError)
            if there and not isinstance(error, LocalEntryNotFoundError):
                continue  # the hub says that there is no such file
            if first == _CONFIG and _in_cache(repository, ADAPTER_CONFIG, revision):
                continue
            raise ModelError(f"cannot get {name!r} from the hub: {told(error)}") from error
    raise ModelError(f"{name!r} has no {_CONFIG}; a transformers checkpoint is needed")


def _in_cache(repository: str, file: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)


def _listed(repository: str, commit: str) -> list[str]:
    """Return the names of a commit's files."""
    from huggingface_hub import HfApi

    found = HfApi().model_info(repository, revision=commit)
    return [file.rfilename for file in found.siblings or ()]


def _download(repository: str, commit: str, names: list[str]) -> None:
    """Fetch files of a commit; those that are in the cache are not fetched again."""
    from huggingface_hub import snapshot_download

    snapshot_download(repository, revision=commit, allow_patterns=patterns(names))


def _cached_names(repository: str, commit: str) -> list[str]:
    """Return the names of a commit's files, where the client has kept its listing; else none."""
    import huggingface_hub

    listing = getattr(huggingface_hub, "get_cached_repo_tree", None)  # of newer clients
    if listing is None:
        return []
    try:
        return [each.path for each in listing(repository, revision=commit)]
    except Exception:  # noqa: BLE001 - as above; without a listing, the weights' own check is left
        return []


def _refuse_partial(
    name: str, folder: Path, names: list[str], weights: bool, why: Exception
) -> None:
    """Refuse what an interrupted download left in the cache."""
    lost = [each for each in wanted(names, weights=weights) if not (folder / each).is_file()]
    if lost:
        raise ModelError(
            f"{name!r} is not whole in the hub's cache, {', '.join(lost[:3])} is missing, and the "
            f"hub cannot be asked: {told(why)}"
        ) from why


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).splitlines() or [""])[0].split())[:200]
