"""Code of users: a stage, captioner, matcher, policy, export format or input reader of their own.

It lies in a Python file or an installed module, and runs only where the user names that file or
module: on the command line (`mine.py:LongTexts`, `--pipeline mine.py`), never because a run folder
mentions it. What it holds counts: the digest of a class's file is part of every id that the class
takes part in (see `fingerprint`), so changed code is done again.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

from capfilt.errors import CapfiltError, InputError
from capfilt.fingerprint import code_identity

T = TypeVar("T")
_PREFIX: Final = "capfilt_user_"
_loaded: Final[dict[str, ModuleType]] = {}  # by the place that the user named


@dataclass(frozen=True, slots=True)
class UserFile:
    """A Python file of a user's: `module` is the name under which its classes are known."""

    path: str
    module: str


def load_code(place: str) -> ModuleType:
    """Run a Python file, or import a module, and return what it defines; twice is once.

    Raises:
        InputError: there is no such file or module, or it fails.
    """
    if place not in _loaded:
        _loaded[place] = _run_file(Path(place)) if _is_file(place) else _import(place)
    return _loaded[place]


def named_recipe(text: str, kind: type[T]) -> T:
    """Return what `FILE.py:NAME` or `MODULE:NAME` names: a recipe, or a class of one.

    Raises:
        InputError: the code fails, or defines no such recipe of that name.
    """
    place, _, name = text.rpartition(":")
    found = getattr(load_code(place), name, None)
    if isinstance(found, type) and issubclass(found, kind):
        try:
            return found()
        except TypeError as error:
            raise InputError(f"{text}: give its fields defaults ({error})") from error
    if isinstance(found, kind):
        return found
    raise InputError(f"{place} defines no {name} that is a {kind.__name__}")


def load_named(text: object) -> None:
    """Run the code that `FILE.py:NAME` or `MODULE:NAME` names; anything else names none."""
    if is_code(text):
        load_code(str(text).rpartition(":")[0])


def is_code(text: object) -> bool:
    """Say whether a text names code: `FILE.py:NAME` or `MODULE:NAME`."""
    if not isinstance(text, str) or ":" not in text:
        return False
    place, _, name = text.rpartition(":")
    parts = place.split(".")
    return name.isidentifier() and (_is_file(place) or all(p.isidentifier() for p in parts))


def user_classes() -> dict[str, type]:
    """Return the dataclasses that are not capfilt's in the code named so far, by name."""
    return {
        value.__name__: value
        for module in _loaded.values()
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and code_identity(value)
    }


def user_files(pickled: bytes) -> tuple[UserFile, ...]:
    """Return the files run so far that a pickle refers to, for `restore_code` elsewhere."""
    return tuple(
        UserFile(str(module.__file__), module.__name__)
        for module in _loaded.values()
        if module.__name__.startswith(_PREFIX) and module.__name__.encode() in pickled
    )


def restore_code(files: tuple[UserFile, ...]) -> None:
    """Run files that the user named in the parent process, so that their objects can be unpickled.

    Raises:
        InputError: a file was changed since.
    """
    for file in files:
        if load_code(file.path).__name__ != file.module:
            raise InputError(f"{file.path} was changed while it was in use; run again")


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _run_file(file: Path) -> ModuleType:
    """Run a file as a module that is named after its content."""
    if not file.is_file():
        raise InputError(f"{file}: no such Python file")
    path = file.resolve()
    name = _PREFIX + hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except CapfiltError:
        del sys.modules[name]
        raise
    except Exception as error:  # a stranger's code may raise anything
        del sys.modules[name]
        raise InputError(f"{file} fails: {type(error).__name__}: {error}") from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"the module {name} cannot be imported: {error}") from error
