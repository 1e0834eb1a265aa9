"""Opening a checkpoint behind its seam, whatever family it is of."""

from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.models.families import ModelKind, model_kind
from capfilt.models.protocols import Captioner, Matcher
from capfilt.models.recipe import CaptionerRecipe, ModelRef, Precision

if TYPE_CHECKING:
    from capfilt.models.blip import BlipCaptioner
    from capfilt.models.blip2 import Blip2Captioner


def open_captioner(recipe: CaptionerRecipe, device: str = "cpu") -> Captioner:
    """Load a captioner.

    Raises:
        ModelError: the checkpoint is incomplete, or no captioner.
    """
    return _captioner_class(recipe.model)(recipe, device)


def open_matcher(ref: ModelRef, itm_token: str, device: str, precision: Precision) -> Matcher:
    """Load a matcher. `itm_token` is BLIP's; the others have their own way at position 0.

    Raises:
        ModelError: the checkpoint is incomplete, or no matcher.
    """
    kind = model_kind(Path(ref.path), "matcher")
    if kind is ModelKind.CLIP_MATCHER:
        from capfilt.models.clip import ClipMatcher

        return ClipMatcher(ref, device, precision)
    if kind is ModelKind.BLIP2_MATCHER:
        from capfilt.models.blip2 import Blip2Matcher

        return Blip2Matcher(ref, device, precision)
    from capfilt.models.blip import BlipMatcher

    return BlipMatcher(ref, itm_token, device, precision)


def _captioner_class(ref: ModelRef) -> "type[BlipCaptioner | Blip2Captioner]":
    kind = model_kind(Path(ref.path), "captioner")
    if kind is ModelKind.INSTRUCTBLIP_CAPTIONER:
        from capfilt.models.instructblip import InstructBlipCaptioner

        return InstructBlipCaptioner
    if kind is ModelKind.BLIP2_CAPTIONER:
        from capfilt.models.blip2 import Blip2Captioner

        return Blip2Captioner
    from capfilt.models.blip import BlipCaptioner

    return BlipCaptioner
