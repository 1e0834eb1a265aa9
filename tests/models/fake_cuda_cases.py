"""What is run on the fake GPU, and what it may ask of it: `fake_cuda_budget.json`.

    python -m tests.models.fake_cuda_cases    # counts everything, and writes the budget anew

A budget has parts. `call`: all of one tile of images, or of texts. `tile`: what one more tile of
images adds. `step`: one token of every caption; `eight steps`, where a step cannot be had alone.
"""

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from transformers import AutoTokenizer, BlipConfig, GenerationMixin, MaxLengthCriteria

from capfilt.models import blip, blip2, clip
from capfilt.models.blip import BlipCaptioner, BlipMatcher
from capfilt.models.blip2 import Blip2Captioner, Blip2Matcher
from capfilt.models.clip import ClipMatcher
from capfilt.models.instructblip import InstructBlipCaptioner
from capfilt.models.protocols import Captioner, Pixels
from capfilt.models.recipe import Beam, CaptionerRecipe, Lengths, ModelRef, Precision
from capfilt.train.data.batch import Batch
from capfilt.train.jobs import At, Job
from capfilt.train.loop import LoopOptions, optimizer_of, take_step
from capfilt.train.model.med import Med
from capfilt.train.recipe import Itc, Optim, Pretrain
from tests.benchmarks.checkpoints import LARGE, configuration, save_processors
from tests.models.fake_cuda import DEVICE, Counts, FakeCuda, fake_cuda
from tests.models.tiny import save_pair
from tests.models.tiny2 import (
    OPT,
    T5,
    save_blip2_captioner,
    save_blip2_matcher,
    save_clip,
    save_instructblip,
)

BUDGET: Final = Path(__file__).with_name("fake_cuda_budget.json")
Parts = dict[str, Counts]
Case = Callable[[FakeCuda, Path], Parts]
_LENGTHS: Final = Lengths(5, 12)
_STEPS: Final = 8  # more, of a search whose steps are counted by their difference
_TYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


def counted(case: str, folder: Path) -> Parts:
    """Run a case; its checkpoints are written to an empty folder."""
    run = CASES[case]
    ref = _SAVED[case.partition(",")[0]](folder)
    with fake_cuda(ends_after=_LENGTHS.max_length - 4) as cuda, _loading():
        return run(cuda, ref)


def _nucleus(cuda: FakeCuda, folder: Path, captions: int) -> Parts:
    captioner = BlipCaptioner(_recipe(folder, num_captions=captions), DEVICE)
    parts = _captioned(cuda, captioner, captioner.sizes.images)
    slots: Any = captioner._decoder._kept
    with captioner.computing(), cuda.counted() as step:
        slots[1].step()
    return {**parts, "step": step}


def _searched(
    cuda: FakeCuda, folder: Path, made: Callable[[CaptionerRecipe, str], Any], **changed: Any
) -> Parts:
    """Count a captioner whose steps are transformers' own: by two lengths."""
    recipe = _recipe(folder, **changed)
    longer = replace(recipe, lengths=Lengths(5, _LENGTHS.max_length + _STEPS))
    captioner, other = made(recipe, DEVICE), made(longer, DEVICE)
    parts = _captioned(cuda, captioner, captioner.sizes.images)
    with cuda.counted() as more:
        _captions(other, captioner.sizes.images)
    return {**parts, "eight steps": more.less(parts["call"])}


def _beams(
    cuda: FakeCuda, folder: Path, made: Callable[[CaptionerRecipe, str], Any], **changed: Any
) -> Parts:
    """Count a beam search in which no image ends before the greatest length."""
    reached: list[bool] = []
    length_is, goes_on = MaxLengthCriteria.__call__, "_beam_search_has_unfinished_sequences"
    unfinished = getattr(GenerationMixin, goes_on)

    def noted(self: Any, ids: torch.Tensor, scores: Any, **given: Any) -> Any:
        reached[:] = [ids.shape[-1] >= self.max_length]
        return length_is(self, ids, scores, **given)

    def asked(*given: Any) -> bool:
        bool(unfinished(*given))  # transformers reads it too
        return not reached[0]

    with (
        mock.patch.object(MaxLengthCriteria, "__call__", noted),
        mock.patch.object(GenerationMixin, goes_on, staticmethod(asked)),
    ):
        return _searched(cuda, folder, made, decoding=Beam(3), **changed)


def _captioned(cuda: FakeCuda, captioner: Captioner, tile: int) -> Parts:
    _captions(captioner, 1)  # what is made once for all calls
    with cuda.counted() as call:
        _captions(captioner, tile)
    with cuda.counted() as two:
        _captions(captioner, 2 * tile)
    return {"call": call, "tile": two.less(call)}


def _captions(captioner: Captioner, count: int) -> None:
    texts = captioner.caption(_images(captioner.side, count), [str(n) for n in range(count)])
    assert len(texts) == count


def _matched(cuda: FakeCuda, matcher: Any, embeds_texts: bool = False) -> Parts:
    tile = matcher.sizes.images
    texts = [["a red circle"], ["a small blue square left of the dog"]] * tile
    one, two = _images(matcher.side, tile), _images(matcher.side, 2 * tile)
    with cuda.counted() as call:
        itm, itc = matcher.match(one, texts[:tile])
    with cuda.counted() as both:
        matcher.match(two, texts)
    assert len(itm) == len(itc) == tile
    with cuda.counted() as again:
        matcher.match(one, texts[:tile])  # another stage: the images are known
    with cuda.counted() as embedded:
        vectors = matcher.embed(one)
    assert len(vectors) == tile
    parts = {"call": call, "tile": both.less(call), "call, images known": again, "embed": embedded}
    if not embeds_texts:
        return parts
    with cuda.counted() as alone:
        matcher.embed_texts([own[0] for own in texts])
    return {**parts, "embed_texts": alone}


def _trained(cuda: FakeCuda, folder: Path) -> Parts:
    """Count a step of pre-training: three losses, momentum copy, queue, optimiser."""
    recipe = Pretrain(Optim(1e-4, 10, 8, warmup_steps=1), Itc(queue_size=24), side=32)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    job = Job(Med(BlipConfig.from_pretrained(folder)), tokenizer, recipe).to(DEVICE)
    optimizer, how = optimizer_of(job), LoopOptions(folder, device=DEVICE)
    texts, keys = tuple(["a red circle"] * 8), tuple(map(str, range(8)))
    pixels = np.zeros((8, 32, 32, 3), np.uint8)
    batch = Batch(pixels, texts, keys, ("web",) * 8, hard_negatives=("a dog", *[None] * 7))
    with cuda.counted() as step:
        found = take_step(job, job, optimizer, iter([batch]), At(0, 0, 0), how)
    assert {"itc", "itm", "lm"} <= found.keys()
    moments = [moment for weight in job.trained for moment in optimizer.state[weight].values()]
    held = [*job.parameters(), *job.buffers(), *moments]
    assert {str(tensor.device) for tensor in held} == {DEVICE}
    assert all(len(optimizer.state[weight]) == 3 for weight in job.trained)  # all had a gradient
    return {"step": step}


def _recipe(folder: Path, **changed: Any) -> CaptionerRecipe:
    usual = CaptionerRecipe(_ref(folder), lengths=_LENGTHS, precision="bf16")
    return replace(usual, **changed)


def _ref(folder: Path) -> ModelRef:
    return ModelRef("digest", folder.name, str(folder))


def _images(side: int, count: int) -> list[Pixels]:
    return [np.zeros((side, side, 3), np.uint8) for _ in range(count)]


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Have models made of their configuration alone."""
    with contextlib.ExitStack() as stack:
        for module in (blip, blip2, clip):
            stack.enter_context(mock.patch.object(module, "load_checkpoint", _made))
        yield


def _made(model_class: Any, ref: ModelRef, device: str, precision: Precision) -> Any:
    config = model_class.config_class.from_pretrained(ref.path, local_files_only=True)
    with torch.device(device):
        model = model_class(config)
    return model.to(dtype=_TYPES[precision]).eval().requires_grad_(False)


def _save_large(folder: Path) -> Path:
    configuration(LARGE).save_pretrained(folder)
    save_processors(folder)
    return folder


CASES: Final[dict[str, Case]] = {
    "BLIP captioner, nucleus, K = 1": functools.partial(_nucleus, captions=1),
    "BLIP captioner, nucleus, K = 4": functools.partial(_nucleus, captions=4),
    "BLIP captioner, beams": functools.partial(_beams, made=BlipCaptioner, num_captions=2),
    "BLIP matcher": lambda cuda, folder: _matched(
        cuda, BlipMatcher(_ref(folder), "enc", DEVICE, "bf16"), embeds_texts=True
    ),
    "CLIP matcher": lambda cuda, folder: _matched(cuda, ClipMatcher(_ref(folder), DEVICE, "bf16")),
    "BLIP-2 captioner of OPT, nucleus, K = 4": functools.partial(
        _searched, made=Blip2Captioner, num_captions=4
    ),
    "BLIP-2 captioner of OPT, beams": functools.partial(_beams, made=Blip2Captioner),
    "BLIP-2 captioner of T5, nucleus": functools.partial(_searched, made=Blip2Captioner),
    "BLIP-2 matcher": lambda cuda, folder: _matched(
        cuda, Blip2Matcher(_ref(folder), DEVICE, "bf16")
    ),
    "InstructBLIP captioner, nucleus": functools.partial(_searched, made=InstructBlipCaptioner),
    "MED, a step of pre-training": _trained,
    "BLIP-large captioner, nucleus, K = 4": functools.partial(_nucleus, captions=4),
    "BLIP-large matcher": lambda cuda, folder: _matched(
        cuda, BlipMatcher(_ref(folder), "enc", DEVICE, "bf16")
    ),
}
# How the checkpoint of a case is written; a case is named after it.
_SAVED: Final[dict[str, Callable[[Path], Path]]] = {
    "BLIP captioner": lambda folder: save_pair(folder)[0],
    "BLIP matcher": lambda folder: save_pair(folder)[1],
    "CLIP matcher": save_clip,
    "BLIP-2 captioner of OPT": lambda folder: save_blip2_captioner(folder, OPT),
    "BLIP-2 captioner of T5": lambda folder: save_blip2_captioner(folder, T5),
    "BLIP-2 matcher": save_blip2_matcher,
    "InstructBLIP captioner": lambda folder: save_instructblip(folder, OPT),
    "MED": lambda folder: save_pair(folder)[1],
    "BLIP-large captioner": _save_large,
    "BLIP-large matcher": _save_large,
}


def main() -> None:
    """Count every case, print where the host stands still, and write the budget."""
    budget: dict[str, dict[str, dict[str, int]]] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            parts = counted(case, Path(folder))
        budget[case] = {name: counts.plain() for name, counts in parts.items()}
        for name, counts in parts.items():
            print(f"{case}, {name}: {counts.plain()}")
            for place, times in counts.where.items():
                print(f"    {times} × {place}")
    BUDGET.write_text(json.dumps(budget, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
