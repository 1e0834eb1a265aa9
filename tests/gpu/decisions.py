"""What a precision costs in decisions: the shipped filter, at each, over the simulated web."""

from random import Random
from typing import Final

import numpy as np
import torch

from capfilt.models.blip import BlipMatcher
from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import Precision
from capfilt.simweb.falsehoods import false_text
from capfilt.simweb.grammar import describe
from tests.gpu.bench import Bench, Findings
from tests.stages.pictures import make_pictures

_PICTURES: Final = 1000
_THRESHOLD: Final = 0.5


def ask(bench: Bench, found: Findings) -> None:
    """Score a true and a false text of each picture; count what falls on the other side."""
    made = make_pictures(21, _PICTURES, 1)
    rng, texts = Random(3), []
    for scene in made.scenes:
        true = describe(scene, rng)
        texts.append([true, false_text(scene, true, rng)])
    precisions: list[Precision] = ["fp32", "tf32", "bf16", "fp16"]
    if bench.device == "cpu":
        precisions = ["fp32", "bf16", "fp16"]
    ref, scores = resolve_model("embedded", "matcher"), {}
    for precision in precisions:
        matcher = BlipMatcher(ref, "enc", bench.device, precision)
        scores[precision] = np.array(matcher.match(list(made.pixels), texts)[0])
    for precision in precisions[1:]:
        flipped = (scores[precision] > _THRESHOLD) != (scores["fp32"] > _THRESHOLD)
        far = float(np.abs(scores[precision] - scores["fp32"]).max())
        found.figures[precision] = {"flipped": int(flipped.sum()), "largest": round(far, 5)}
        found.say(
            f"  {precision}: {flipped.sum()} of {flipped.size} decisions at {_THRESHOLD} are "
            f"others than at fp32; scores differ by {far:.1e} at most"
        )
    found.expect(bool(np.isfinite(np.stack(list(scores.values()))).all()), "all scores are numbers")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
