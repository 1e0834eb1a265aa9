"""What kind of model a checkpoint is, from its config.json alone. Never imports torch."""

import importlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from capfilt.errors import ModelError

Role = Literal["captioner", "matcher"]


class ModelKind(Enum):
    """A class of transformers, and which of ours runs it. To add a family is a line, and a module.

    (its name, `model_type` of its config.json, what it can be, module:class of ours). A matcher of
    ours whose token at position 0 can be chosen has `has_itm_token`.
    """

    BLIP_CAPTIONER = (
        "BlipForConditionalGeneration",
        "blip",
        "captioner",
        "blip:BlipCaptioner",
    )
    BLIP2_CAPTIONER = (
        "Blip2ForConditionalGeneration",
        "blip-2",
        "captioner",
        "blip2:Blip2Captioner",
    )
    INSTRUCTBLIP_CAPTIONER = (
        "InstructBlipForConditionalGeneration",
        "instructblip",
        "captioner",
        "instructblip:InstructBlipCaptioner",
    )
    CLIP_MATCHER = ("CLIPModel", "clip", "matcher", "clip:ClipMatcher")
    BLIP2_MATCHER = ("Blip2ForImageTextRetrieval", "blip-2", "matcher", "blip2:Blip2Matcher")
    BLIP_MATCHER = ("BlipForImageTextRetrieval", "blip", "matcher", "blip:BlipMatcher", True)

    def __init__(
        self,
        architecture: str,
        model_type: str,
        role: Role,
        ours: str,
        has_itm_token: bool = False,
    ) -> None:
        self.architecture, self.model_type, self.role = architecture, model_type, role
        self.ours, self.has_itm_token = ours, has_itm_token

    def our_class(self) -> Any:  # a class with its own parameters; see `loaders`
        """Import and return the class of ours that runs the model."""
        module, _, name = self.ours.partition(":")
        return getattr(importlib.import_module(f"capfilt.models.{module}"), name)


class WrongKindError(ModelError):
    """The checkpoint is a model, but not one that can do what it is asked."""


def model_kind(folder: Path, role: Role) -> ModelKind:
    """Return the kind of the checkpoint in a folder, which is to be used as `role`.

    `architectures` decides; where an old config.json lacks it, `model_type` does, with the role.

    Raises:
        ModelError: config.json cannot be read, or the model is no such thing, or quantised.
    """
    config = read_config(folder)
    refuse_quantised(folder, config)
    kinds = [kind for kind in ModelKind if kind.role == role]
    named = config.get("architectures") or []
    if not isinstance(named, list):
        raise ModelError(f"{folder / 'config.json'} has architectures that are no list: {named!r}")
    for kind in kinds:
        if kind.architecture in named or (not named and kind.model_type == config["model_type"]):
            return kind
    found = ", ".join(map(str, named)) or config["model_type"]
    wanted = ", ".join(kind.architecture for kind in kinds)
    raise WrongKindError(f"{folder} is a {found}; as {role} one of {wanted} is needed")


def read_config(folder: Path) -> dict[str, Any]:  # JSON
    """Return the config.json of a checkpoint.

    Raises:
        ModelError: it cannot be read.
    """
    file = folder / "config.json"
    # BLIP's own checkpoints are what was meant before there were others.
    return {"model_type": "blip", **read_json(file, "a transformers checkpoint is needed")}


def config_part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:  # JSON
    """Return a part of a config.json, such as `vision_config`; empty where there is none."""
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def read_json(file: Path, needed: str) -> dict[str, Any]:  # JSON
    """Return the object in a checkpoint's JSON file; `needed` says in an error what for.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}); {needed}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} cannot be read (it holds no JSON object); {needed}")
    return found


def refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights, or those of a part of it, are no plain floats.

    Raises:
        ModelError: it is quantised.
    """
    parts = [config, *(config_part(config, name) for name in ("text_config", "vision_config"))]
    found = [part["quantization_config"] for part in parts if part.get("quantization_config")]
    if found:
        method = found[0].get("quant_method") if isinstance(found[0], dict) else None
        raise ModelError(
            f"{folder} is quantised ({method or 'quantization_config'}), which changes captions "
            "and scores and is not supported; give the checkpoint that it was made from"
        )
