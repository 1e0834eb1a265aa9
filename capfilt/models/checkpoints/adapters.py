"""Adapters of peft: a few matrices that change the weights of another checkpoint, their base.

They are merged into the base when it is loaded, so that a run costs what the base costs. An adapter
that would be passed over in silence leaves the base's captions under the adapter's name.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

from capfilt.errors import ModelError
from capfilt.models.checkpoints.parts import ADAPTER_CONFIG
from capfilt.models.families import read_json

_MERGED: Final = frozenset({"LORA", "LOHA", "LOKR", "IA3"})


def is_adapter(folder: Path) -> bool:
    """Say whether an adapter lies in a folder."""
    return (folder / ADAPTER_CONFIG).is_file()


def check_adapter(folder: Path) -> dict[str, Any]:  # JSON
    """Return an adapter's configuration.

    Raises:
        ModelError: it cannot be merged into its base, or peft is not installed.
    """
    config = read_json(folder / ADAPTER_CONFIG, "an adapter of peft is needed")
    kind = config.get("peft_type")
    if kind not in _MERGED:
        raise ModelError(
            f"{folder} is an adapter of type {kind}, which is not merged into weights here; "
            f"{', '.join(sorted(_MERGED))} are"
        )
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{folder} has an adapter ({kind}), and merging it needs peft: "
            "pip install 'capfilt[adapters]', or merge it (merge_and_unload) and save the result"
        )
    return config


def base_name(folder: Path, config: dict[str, Any]) -> str:  # JSON
    """Return what an adapter calls its base: a folder, or a hub name with its revision.

    A relative folder counts from where capfilt runs, as in peft, or from the adapter's own.

    Raises:
        ModelError: it names none.
    """
    name = config.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path; write there which "
            "checkpoint the adapter was trained on ('.': the weights beside it)"
        )
    if name != "." and Path(name).is_dir():
        return name
    if (folder / name).is_dir():
        return str(folder / name)
    revision = config.get("revision")
    return f"{name}@{revision}" if revision else name
