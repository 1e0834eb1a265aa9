"""One process of a contestant of `tests.benchmarks.models`: ours, transformers, or bare products.

It says "ready" when it is loaded, and for each line that it reads does the work once and says how
many seconds it took; at the end of its input it says how much memory it has taken at most.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from capfilt.models.pixels import load_rgb
from capfilt.models.recipe import CaptionerRecipe, Precision
from tests.benchmarks.checkpoints import Architecture

PROMPT: Final = "a picture of"
PROMPT_TOKENS: Final = 4  # the start token and three words
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What there is to do: `images` files, a list of texts for each, K captions of `steps` tokens.

    `part`: both, or caption or match alone.
    """

    folder: Path
    images: list[str]
    texts: list[list[str]]
    captions: int
    steps: int
    part: str
    precision: Precision
    batch: int
    device: str

    @property
    def length(self) -> int:
        """Tokens of a caption with its prompt."""
        return PROMPT_TOKENS + self.steps


def ours(task: Task) -> Work:
    """Return our captioner and matcher at work, as the stages of a round call them."""
    from capfilt.models.blip import BlipCaptioner, BlipMatcher
    from capfilt.models.checkpoints import resolve_model
    from capfilt.models.recipe import Lengths, Nucleus

    captioner = matcher = None
    if task.part != "match":
        captioner = BlipCaptioner(
            CaptionerRecipe(
                resolve_model(str(task.folder / "captioner"), "captioner"),
                decoding=Nucleus(),
                lengths=Lengths(task.length, task.length),
                prompt=PROMPT,
                num_captions=task.captions,
                seed=0,
                precision=task.precision,
            ),
            device=task.device,
        )
    if task.part != "caption":
        ref = resolve_model(str(task.folder / "matcher"), "matcher")
        matcher = BlipMatcher(ref, "enc", task.device, task.precision)
    side = (captioner or matcher).side  # type: ignore[union-attr]  # one of them is there

    def do() -> None:
        pixels = [load_rgb(Path(name).read_bytes(), side) for name in task.images]
        if captioner is not None:
            captioner.caption(pixels, task.images)
        if matcher is not None:
            matcher.match(pixels, task.texts)

    return do


class Theirs:
    """transformers' classes at work, as its documentation calls them."""

    def __init__(self, task: Task) -> None:
        from transformers import AutoTokenizer
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        self._task = task
        self._captioner = self._matcher = None
        if task.part != "match":
            self._captioner = self._loaded("BlipForConditionalGeneration", "captioner")
        if task.part != "caption":
            self._matcher = self._loaded("BlipForImageTextRetrieval", "matcher")
        self._processor = BlipImageProcessorPil.from_pretrained(task.folder / "captioner")
        self._tokenizer = AutoTokenizer.from_pretrained(task.folder / "captioner")

    def work(self) -> None:
        """Caption and match all images once."""
        task = self._task
        with torch.inference_mode():
            for start in range(0, len(task.images), task.batch):
                part = slice(start, start + task.batch)
                pixels = self._pixels(task.images[part])
                if self._captioner is not None:
                    self._caption(self._captioner, pixels)
                if self._matcher is not None:
                    self._match(self._matcher, pixels, task.texts[part])

    def _loaded(self, name: str, role: str) -> Any:  # transformers' classes are untyped
        import transformers

        model_class: Any = getattr(transformers, name)
        dtype = _DTYPES[self._task.precision]
        model = model_class.from_pretrained(self._task.folder / role, dtype=dtype)
        return model.to(self._task.device).eval()

    def _pixels(self, names: list[str]) -> torch.Tensor:
        from PIL import Image

        images = [Image.open(name).convert("RGB") for name in names]
        found: torch.Tensor = self._processor(images, return_tensors="pt").pixel_values
        return found.to(self._task.device, _DTYPES[self._task.precision])

    def _caption(self, captioner: Any, pixels: torch.Tensor) -> None:
        task = self._task
        prompt = self._tokenizer([PROMPT] * len(pixels), return_tensors="pt").to(task.device)
        captioner.generate(
            pixel_values=pixels,
            input_ids=prompt.input_ids,
            attention_mask=prompt.attention_mask,
            do_sample=True,
            top_p=0.9,
            top_k=50,
            repetition_penalty=1.1,
            num_return_sequences=task.captions,
            min_length=task.length,
            max_length=task.length,
        )

    def _match(self, matcher: Any, pixels: torch.Tensor, texts: list[list[str]]) -> None:
        for own in zip(*texts, strict=True):
            inputs = self._tokenizer(list(own), padding=True, return_tensors="pt")
            inputs = inputs.to(self._task.device)
            scored = matcher(inputs.input_ids, pixels, attention_mask=inputs.attention_mask)
            scored.itm_score.float().softmax(-1)[:, 1].tolist()


def transformers(task: Task) -> Work:
    """Return transformers at work."""
    return Theirs(task).work


def products(task: Task, architecture: Architecture) -> Work:
    """Return the matrix products of an image tower's feed-forward layers, of about 0.2 TFLOP.

    Both shapes that it has, over four images: the rate that this machine multiplies at.
    """
    rows, width = 4 * architecture.tokens, architecture.vision_width
    dtype, device = _DTYPES[task.precision], task.device
    x = torch.randn(rows, width, device=device).to(dtype)
    up = torch.randn(4 * width, width, device=device).to(dtype)
    down = torch.randn(width, 4 * width, device=device).to(dtype)
    times = product_count(architecture)

    def do() -> None:
        with torch.inference_mode():
            for _ in range(times):
                torch.nn.functional.linear(torch.nn.functional.linear(x, up), down)
            if device != "cpu":
                torch.cuda.synchronize()

    return do


def product_count(architecture: Architecture, flops: float = 2e11) -> int:
    """Return how many pairs of products come to `flops`."""
    return max(1, round(flops / product_flops(architecture)))


def product_flops(architecture: Architecture) -> float:
    """Return the operations of one pair of products."""
    return 16.0 * 4 * architecture.tokens * architecture.vision_width**2


def decode(task: Task) -> Work:
    """Return the decoding and resizing of the images alone."""

    def do() -> None:
        for name in task.images:
            np.asarray(load_rgb(Path(name).read_bytes(), 384))

    return do


def main() -> None:
    """Load, say so, and work once for each line."""
    from tests.benchmarks.checkpoints import BASE, LARGE

    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["ours", "transformers", "products", "decode"])
    parser.add_argument("--task", required=True, help="the fields of Task as JSON")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    plain = json.loads(given.task)
    task = Task(**{**plain, "folder": Path(plain["folder"])})
    torch.set_num_threads(given.threads)
    if given.kind == "products":
        do = products(task, LARGE if given.large else BASE)
    else:
        do = {"ours": ours, "transformers": transformers, "decode": decode}[given.kind](task)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        do()
        if task.device != "cpu":
            torch.cuda.synchronize()
        print(f"took {time.perf_counter() - began}", flush=True)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}", flush=True)


if __name__ == "__main__":
    main()
