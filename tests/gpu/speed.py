"""Captioner and filter at work, against transformers at its best batch."""

from functools import partial
from typing import Any, Final

import torch

from capfilt.models.recipe import Precision
from tests.gpu.bench import LENGTHS, Bench, Findings, free, peak_gb, seconds

# Dense bf16 peaks by the vendors' datasheets, TFLOP/s; another card is held against its own matrix
# rate.
PEAKS: Final = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
_BATCHES: Final = (64, 128, 256)
_IMPLEMENTATIONS: Final = ("sdpa", "eager")
# BLIP's text tower is BERT-base; a text of nine words has eleven tokens, and takes the place of 12.
_TEXT_LAYERS: Final = 12
_TEXT_WIDTH: Final = 768.0
_VOCABULARY: Final = 30_524
_TEXT_TOKENS: Final = 12


def ask(bench: Bench, found: Findings) -> None:
    """Time K = 1 and K = 4, whole and in parts, and transformers on the same work."""
    cuda = bench.device.startswith("cuda")
    precisions: tuple[Precision, ...] = ("bf16", "tf32", "fp32") if cuda else ("bf16",)
    peak = next((v for k, v in PEAKS.items() if cuda and k in torch.cuda.get_device_name()), None)
    for captions in (1, 4):
        for precision in precisions:
            if captions > 1 and precision != "bf16":
                continue
            _ours(bench, found, captions, precision, peak)
            free()
        _theirs(bench, found, captions)
        free()


def work_flops(bench: Bench, captions: int) -> float:
    """Return the operations an image of captioner and filter: towers, keys, captions, texts."""
    one, square = bench.architecture, _TEXT_WIDTH**2
    looked = 4.0 * _TEXT_LAYERS * one.tokens * _TEXT_WIDTH  # a token at an image's states
    alone, crossed = (2.0 * _TEXT_LAYERS * many * square for many in (12, 14))  # weights a token
    keys = 4.0 * _TEXT_LAYERS * one.tokens * one.vision_width * _TEXT_WIDTH
    word = crossed + looked + 2.0 * _TEXT_WIDTH * _VOCABULARY
    text = _TEXT_TOKENS * (crossed + looked + alone)  # for ITM, and for ITC without the image
    towers = 2 * (one.vision_flops + keys)
    return towers + captions * (LENGTHS.max_length - 4) * word + (1 + captions) * text


def _ours(
    bench: Bench, found: Findings, captions: int, precision: Precision, peak: float | None
) -> None:
    images = bench.pixels(bench.images if precision == "bf16" else max(4, bench.images // 4))
    times = 3 if precision == "bf16" else 1
    keys, web = [str(n) for n in range(len(images))], bench.texts(len(images), 1)
    own = bench.texts(len(images), captions)
    captioner, matcher = bench.captioner(captions, precision), bench.matcher(precision)

    def both() -> None:
        fresh = [image[:] for image in images]  # arrays of their own, so that states are not kept
        captioner.caption(fresh, keys)
        matcher.match(fresh, web)
        matcher.match(fresh, own)

    whole = seconds(both, times) / len(images)
    alone = seconds(lambda: captioner.caption(images, keys), times) / len(images)
    rate = work_flops(bench, captions) / whole / 1e12
    share = f", {rate / peak:.1%} of the card's bf16 peak" if peak and precision == "bf16" else ""
    found.figures[f"ours_{precision}_k{captions}"] = {
        "images_s": round(1 / whole, 1),
        "captioner_ms": round(alone * 1e3, 3),
        "tflops": round(rate, 1),
        "mfu": None if peak is None else round(rate / peak, 4),
        "peak_gb": round(peak_gb(), 2),
    }
    found.say(
        f"  capfilt {precision}, K = {captions}: {1 / whole:,.0f} images/s ({whole * 1e3:.2f} ms, "
        f"captioner {alone * 1e3:.2f}), {rate:,.0f} TFLOP/s{share}, {peak_gb():.1f} GB"
    )


def _theirs(bench: Bench, found: Findings, captions: int) -> None:
    best: tuple[float, str] | None = None
    for implementation in _IMPLEMENTATIONS:
        try:
            models = _loaded(bench, implementation)
        except (ValueError, ImportError):
            continue  # the class has no such attention
        for batch in _BATCHES if bench.device != "cpu" else (4,):
            try:
                taken = seconds(partial(_their_work, *models, batch, captions), 1) / batch
            except torch.OutOfMemoryError:
                break
            if best is None or taken < best[0]:
                best = taken, f"{implementation} attention, batch {batch}"
        break
    if best is None:
        found.faults.append("transformers did not run")
        return
    ours = found.figures[f"ours_bf16_k{captions}"]["images_s"]
    found.figures[f"transformers_bf16_k{captions}"] = {"images_s": round(1 / best[0], 1)}
    found.say(
        f"  transformers bf16, K = {captions}: {1 / best[0]:,.0f} images/s ({best[1]}); "
        f"capfilt is {ours * best[0]:.2f} times as fast"
    )


def _loaded(bench: Bench, implementation: str) -> tuple[Any, Any]:
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    captioner, matcher = (
        made.from_pretrained(
            bench.folder / role, dtype=torch.bfloat16, attn_implementation=implementation
        )
        .to(bench.device)
        .eval()
        for made, role in (
            (BlipForConditionalGeneration, "captioner"),
            (BlipForImageTextRetrieval, "matcher"),
        )
    )
    return captioner, matcher


@torch.inference_mode()
def _their_work(captioner: Any, matcher: Any, batch: int, captions: int) -> None:
    """Caption and score as transformers' documentation does, on pixels that are there already."""
    device = captioner.device
    side = captioner.config.vision_config.image_size
    pixels = torch.randn(batch, 3, side, side, device=device, dtype=torch.bfloat16)
    prompt = torch.tensor([[30522, 5, 6, 7, 3]], device=device).repeat(batch, 1)
    captioner.generate(
        pixel_values=pixels,
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_p=0.9,
        top_k=50,
        repetition_penalty=1.1,
        num_return_sequences=captions,
        min_length=LENGTHS.max_length,
        max_length=LENGTHS.max_length,
    )
    texts = torch.randint(10, 1000, (batch, 11), device=device)
    for _ in range(captions + 1):
        scored = matcher(texts, pixels, attention_mask=torch.ones_like(texts))
        scored.itm_score.float().softmax(-1)[:, 1].tolist()
