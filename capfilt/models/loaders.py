"""Loading a checkpoint behind its seam, whatever family it is of; see `families`."""

from pathlib import Path

from capfilt.models.families import model_kind
from capfilt.models.protocols import Captioner, Matcher
from capfilt.models.recipe import CaptionerRecipe, ModelRef, Precision


def open_captioner(recipe: CaptionerRecipe, device: str = "cpu") -> Captioner:
    """Load a captioner.

    Raises:
        ModelError: the checkpoint is incomplete, or no captioner.
    """
    kind = model_kind(Path(recipe.model.path), "captioner")
    captioner: Captioner = kind.our_class()(recipe, device)
    return captioner


def open_matcher(ref: ModelRef, itm_token: str, device: str, precision: Precision) -> Matcher:
    """Load a matcher. `itm_token` is for families where it can be chosen.

    Raises:
        ModelError: the checkpoint is incomplete, or no matcher.
    """
    kind = model_kind(Path(ref.path), "matcher")
    chosen = {"itm_token": itm_token} if kind.has_itm_token else {}
    matcher: Matcher = kind.our_class()(ref, device=device, precision=precision, **chosen)
    return matcher
