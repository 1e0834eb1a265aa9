"""Pipeline files: Python that defines a round, the user's own or one that capfilt ships."""

import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Final

from capfilt.errors import InputError
from capfilt.recipe.round import Round
from capfilt.usercode import load_code

_FOLDER: Final = "pipelines"


def load_pipeline(name: str) -> Round:
    """Run a pipeline file and return its `ROUND`; see `run_pipeline`.

    Raises:
        InputError: there is no such file, it fails, or it defines no `ROUND`.
    """
    recipe = getattr(run_pipeline(name), "ROUND", None)
    if not isinstance(recipe, Round):
        raise InputError(f"{name} defines no ROUND = Round(…); see pipelines/ for some to copy")
    return recipe


def run_pipeline(name: str) -> ModuleType:
    """Run a pipeline file, given by its path or by the name of a shipped one (`blip_large`).

    Raises:
        InputError: there is no such file, or it fails.
    """
    if Path(name).suffix == ".py" and Path(name).is_file():
        return load_code(name)
    shipped = shipped_pipelines()
    if name in shipped:
        return load_code(str(shipped[name]))
    raise InputError(
        f"{name} is no pipeline file; give a Python file, or one of {', '.join(shipped)}"
    )


def shipped_pipelines() -> dict[str, Path]:
    """Return the pipeline files that come with capfilt, by name."""
    return {file.stem: file for file in sorted(_shipped()) if file.stem != "__init__"}


def _shipped() -> list[Path]:
    beside = Path(__file__).parents[2] / _FOLDER  # a clone
    if beside.is_dir():
        return list(beside.glob("*.py"))
    try:
        files = importlib.metadata.files("capfilt") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    named = [file for file in files if file.parent.name == _FOLDER and file.suffix == ".py"]
    return [Path(str(file.locate())) for file in named]
