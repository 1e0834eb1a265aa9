"""Whether the device computes what transformers computes, at each precision."""

from typing import Any, Final

import torch

from capfilt.models.compute.tiles import fixed_compute
from capfilt.models.recipe import Nucleus, Precision
from tests.gpu.bench import LENGTHS, PROMPT, Bench, Findings, free

_IMAGES: Final = 8
# Largest differences that are rounding: of states of size 5, of probabilities, of cosines.
_BOUNDS: Final[dict[Precision, tuple[float, float]]] = {
    "fp32": (1e-4, 1e-4),
    "tf32": (2e-2, 1e-2),
    "bf16": (0.4, 0.1),
    "fp16": (5e-2, 2e-2),
}
_GREEDY: Final = Nucleus(top_k=1, repetition_penalty=1.0)


def ask(bench: Bench, found: Findings) -> None:
    """Compare states, greedy tokens and scores with transformers' own classes at fp32."""
    precisions: list[Precision] = ["fp32", "tf32", "bf16", "fp16"]
    if bench.device == "cpu":
        precisions = ["fp32", "bf16"]
    truth = _Reference(bench)
    for precision in precisions:
        states, tokens, scores = _differences(bench, precision, truth)
        found.figures[precision] = {"states": states, "greedy_tokens": tokens, "scores": scores}
        bounds = _BOUNDS[precision]
        found.expect(
            states < bounds[0] and scores < bounds[1],
            f"{precision}: states differ by {states:.1e}, scores by {scores:.1e}, "
            f"greedy texts equal {tokens:.0%}",
        )
        if precision == "fp32":
            found.expect(tokens == 1.0, "fp32: greedy tokens are transformers'")
        free()


class _Reference:
    """transformers' classes on the same weights and pictures, at fp32 without TF32."""

    def __init__(self, bench: Bench) -> None:
        from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

        captioner, matcher = (
            made.from_pretrained(bench.folder / role).to(bench.device).eval()
            for made, role in (
                (BlipForConditionalGeneration, "captioner"),
                (BlipForImageTextRetrieval, "matcher"),
            )
        )
        ours = bench.captioner(1, "fp32")
        self.images, self.texts = bench.pixels(_IMAGES), bench.texts(_IMAGES, 1)
        with fixed_compute():
            pixels = self.pixels_of(ours, bench.device)
            self.states = captioner.vision_model(pixels).last_hidden_state
            self.written = self._greedy(captioner, ours, pixels)
            self.scores = self._scores(matcher, bench, pixels)

    def pixels_of(self, ours: Any, device: str) -> torch.Tensor:
        """Return the pictures as the model takes them."""
        pixels: torch.Tensor = ours._pixels(
            torch.stack([torch.tensor(i) for i in self.images]).to(device)
        )
        return pixels

    def _greedy(self, captioner: Any, ours: Any, pixels: torch.Tensor) -> list[str]:
        # transformers cuts the last token of its prompt.
        ids = torch.tensor([[*ours._prompt, ours._end]], device=pixels.device)
        found = captioner.generate(
            pixel_values=pixels,
            input_ids=ids.repeat(len(pixels), 1),
            do_sample=False,
            num_beams=1,
            min_length=LENGTHS.min_length,
            max_length=LENGTHS.max_length,
        )
        texts = [ours._tokenizer.decode(one, skip_special_tokens=True) for one in found]
        return [text.removeprefix(PROMPT).strip() for text in texts]

    def _scores(self, matcher: Any, bench: Bench, pixels: torch.Tensor) -> torch.Tensor:
        """Return ITM and ITC (2, images)."""
        tokenizer = bench.matcher("fp32")._tokenizer
        inputs = tokenizer([own[0] for own in self.texts], return_tensors="pt", padding=True)
        given = {"pixel_values": pixels, "attention_mask": inputs.attention_mask.to(pixels.device)}
        ids = inputs.input_ids.to(pixels.device)
        itm = matcher(ids, **given).itm_score.float().softmax(-1)[:, 1]
        itc = matcher(ids, **given, use_itm_head=False).itm_score.float().diagonal()
        return torch.stack([itm, itc]).cpu()


def _differences(
    bench: Bench, precision: Precision, truth: _Reference
) -> tuple[float, float, float]:
    """Return (largest difference of states, share of equal greedy texts, that of scores)."""
    captioner = bench.captioner(1, precision, _GREEDY)
    with captioner.computing():
        states = captioner._vision(truth.pixels_of(captioner, bench.device))
    far = float((states.float() - truth.states).abs().max())
    written = captioner.caption(truth.images, [str(n) for n in range(_IMAGES)])
    equal = [own == other for [own], other in zip(written, truth.written, strict=True)]
    found = bench.matcher(precision, "cls").match(truth.images, truth.texts)
    scores = torch.tensor([[own[0] for own in part] for part in found])
    return far, sum(equal) / len(equal), float((scores - truth.scores).abs().max())
