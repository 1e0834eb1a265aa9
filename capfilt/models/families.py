"""What kind of model a checkpoint is, from its config.json alone. Never imports torch."""

import json
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from capfilt.errors import ModelError

Role = Literal["captioner", "matcher"]


class ModelKind(Enum):
    """A class of transformers: (its name, `model_type` of its config.json, what it can be)."""

    BLIP_CAPTIONER = ("BlipForConditionalGeneration", "blip", "captioner")
    BLIP2_CAPTIONER = ("Blip2ForConditionalGeneration", "blip-2", "captioner")
    INSTRUCTBLIP_CAPTIONER = ("InstructBlipForConditionalGeneration", "instructblip", "captioner")
    CLIP_MATCHER = ("CLIPModel", "clip", "matcher")
    BLIP2_MATCHER = ("Blip2ForImageTextRetrieval", "blip-2", "matcher")
    BLIP_MATCHER = ("BlipForImageTextRetrieval", "blip", "matcher")

    def __init__(self, architecture: str, model_type: str, role: Role) -> None:
        self.architecture, self.model_type, self.role = architecture, model_type, role


def model_kind(folder: Path, role: Role) -> ModelKind:
    """Return the kind of the checkpoint in a folder, which is to be used as `role`.

    `architectures` decides; where an old config.json lacks it, `model_type` does, with the role.

    Raises:
        ModelError: config.json cannot be read, or the model is no such thing.
    """
    config = _config(folder)
    kinds = [kind for kind in ModelKind if kind.role == role]
    named = config.get("architectures") or []
    for kind in kinds:
        if kind.architecture in named or (not named and kind.model_type == config["model_type"]):
            return kind
    found = ", ".join(map(str, named)) or config["model_type"]
    wanted = ", ".join(kind.architecture for kind in kinds)
    raise ModelError(f"{folder} is a {found}; as {role} one of {wanted} is needed")


def _config(folder: Path) -> dict[str, Any]:  # JSON
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # BLIP's own checkpoints are what was meant before there were others.
        return {"model_type": "blip", **config}
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{file} cannot be read ({error}); a transformers checkpoint is needed"
        ) from error
