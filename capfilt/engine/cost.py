"""What a run will roughly cost: measured rates where there are some, arithmetic where not."""

import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from capfilt.engine.plan import Plan, PlannedStage
from capfilt.engine.status import stage_status
from capfilt.fingerprint import code_identity
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import rows_of
from capfilt.models.recipe import Beam, ModelRef
from capfilt.stages.caption import Caption
from capfilt.stages.match import MatchCaptions, MatchWeb

_TEXT_TOKENS: Final = 16  # of a typical web text
_CAPTION_TOKENS: Final = 12  # written after the prompt
_EFFICIENCY: Final = 0.3  # of the matrix rate that a whole model reaches, roughly
_PROBE_SIZE: Final = 768


def estimate(ledger: Ledger, plan: Plan, planned: PlannedStage) -> dict[str, Any]:  # JSON
    """Say what a stage has to do, and its seconds of compute, or None where nothing is known.

    The rate is that of the shards that the stage has finished; before the first, the model's
    arithmetic over the matrix rate of this machine, which says hours from days but no more.
    """
    missing = plan.missing(ledger, planned)
    rows = rows_of(missing, ledger)
    done = stage_status(ledger, plan, planned)
    seconds: float | None = None
    if done.rows_per_second:
        seconds = rows / done.rows_per_second
    elif flops := flops_per_row(planned.stage):
        seconds = rows * flops / (compute_rate())
    return {
        "stage": planned.id,
        "shards": len(plan.shards),
        "shards_missing": len(missing),
        "rows_missing": rows,
        "estimated_seconds": None if seconds is None else round(seconds, 1),
        "measured": done.rows_per_second is not None,
    }


def flops_per_row(stage: object) -> float | None:
    """Return the floating-point operations a row of a model stage, None where they are unknown."""
    model = getattr(stage, "model", None)
    if not isinstance(model, ModelRef) or not model.has_files or code_identity(type(stage)):
        return None
    if isinstance(stage, Caption):
        beams = stage.decoding.num_beams if isinstance(stage.decoding, Beam) else 1
        texts = stage.num_captions * beams
        return _vision(stage.model) + texts * _CAPTION_TOKENS * _text_token(stage.model)
    if isinstance(stage, MatchWeb):
        return _vision(stage.model) + 2 * _TEXT_TOKENS * _text_token(stage.model)
    if isinstance(stage, MatchCaptions):  # the image's states are at hand from MatchWeb
        return 2 * _TEXT_TOKENS * _text_token(stage.model)
    return None


def _vision(model: ModelRef) -> float:
    return vision_flops(_config(model))


def vision_flops(config: Any, side: int | None = None) -> float:  # a checkpoint's config.json
    """Multiply-adds of a ViT, twice: 12 h² a token and layer, and attention over n² pairs.

    `side` is that of the image in pixels; None: the checkpoint's own.
    """
    vision = config["vision_config"]
    width, layers = vision.get("hidden_size", 768), vision.get("num_hidden_layers", 12)
    side, patch = side or vision.get("image_size", 384), vision.get("patch_size", 16)
    tokens = (side // patch) ** 2 + 1
    return float(layers * (24 * tokens * width**2 + 4 * tokens**2 * width))


def _text_token(model: ModelRef) -> float:
    return token_flops(_config(model))


def token_flops(config: Any) -> float:  # a checkpoint's config.json
    """Operations for one token of the text model: 16 h² a layer with cross-attention."""
    text = config["text_config"]
    width, layers = text.get("hidden_size", 768), text.get("num_hidden_layers", 12)
    return float(layers * 32 * width**2 + 2 * text.get("vocab_size", 30524) * width)


def _config(model: ModelRef) -> Any:  # a checkpoint's config.json
    return json.loads((Path(model.path) / "config.json").read_text(encoding="utf-8"))


def compute_rate() -> float:
    """Return operations a second that a model may reach here: a part of the fp32 matrix rate.

    The matrix rate is measured, in a twentieth of a second.
    """
    matrix = np.ones((_PROBE_SIZE, _PROBE_SIZE), np.float32)
    matrix @ matrix
    began = time.perf_counter()
    matrix @ matrix
    return float(2 * _PROBE_SIZE**3 / (time.perf_counter() - began)) * _EFFICIENCY
