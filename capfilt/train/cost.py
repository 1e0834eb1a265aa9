"""What a training roughly costs: operations a step, and seconds where some were measured."""

import re
from pathlib import Path
from typing import Any, Final

from capfilt.engine.cost import token_flops, vision_flops
from capfilt.train.options import AnyRecipe
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter

_TOKENS: Final = 16  # of a typical text, padded to the longest of its batch
_BOTH_WAYS: Final = 3  # a backward pass costs two forward ones
_NAME: Final = re.compile(r"step-(\d+)\.pt$")


def step_flops(recipe: AnyRecipe, config: Any) -> float:  # a checkpoint's config.json
    """Return the floating-point operations of one step of the optimiser.

    An image passes the image encoder once; a text the decoder for LM, the encoder alone for ITC,
    and the encoder with cross-attention for ITM, where every pair comes with its hard negatives
    (BLIP, section 3.2). ITC has image and text once more through the momentum copy, forwards.
    """
    image, text = vision_flops(config, recipe.side), _TOKENS * token_flops(config)
    forward, momentum = image, 0.0
    if not isinstance(recipe, FineTuneFilter):
        captions = recipe.captions_per_image
        forward += captions * text
    if not isinstance(recipe, FineTuneCaptioner):
        matched = 1 + recipe.itm.hard_texts + recipe.itm.hard_images
        forward += (1 + matched) * text
        momentum = image + text
    return float(recipe.optim.batch_size * (_BOTH_WAYS * forward + momentum))


def seconds_a_step(folder: Path) -> tuple[int, float | None]:
    """Return the steps that a training has kept, and its seconds a step, None before the second.

    The seconds are those between its last two checkpoints, a pause between them included.
    """
    found = sorted((folder / "checkpoints").glob("step-*.pt"))
    marks = [(int(m[1]), path.stat().st_mtime) for path in found if (m := _NAME.search(path.name))]
    if not marks:
        return 0, None
    if len(marks) == 1:
        return marks[0][0], None
    (early, began), (late, ended) = marks[-2:]
    return late, (ended - began) / (late - early)
