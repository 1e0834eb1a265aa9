"""How good the embedded models are, on scenes that no training has seen.

    python -m pipelines.experiments.quality [MODELS]

The models are loaded as anybody would load them, by transformers' own classes, and the pictures
go the way of a round: rendered, compressed, re-encoded by the downloader, squashed.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from tqdm import tqdm

from capfilt.evaluate.judging import roc_auc
from capfilt.models.checkpoints import EMBEDDED_FOLDER
from capfilt.models.filter_text import normalise_for_filter
from capfilt.simweb.corruption import AltText, Noise
from capfilt.simweb.grammar import facts_true
from capfilt.simweb.pictures import image_bytes
from capfilt.simweb.render import to_jpeg
from capfilt.simweb.scenes import Scene, sample_scene
from capfilt.simweb.web import web_row

MODELS: Final = EMBEDDED_FOLDER
HELD_OUT: Final = 900_001  # the web that is judged; training draws other seeds
PROMPT: Final = "a picture of "
_REENCODED: Final = 95  # the quality that img2dataset writes by default
_BATCH: Final = 100
_PLAIN: Final = Noise().scaled(0.0)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures on `scenes` held-out scenes, shares in [0, 1].

    `greedy_true`, `nucleus_true`: captions of which every statement is true of the scene; nucleus
    sampling as BLIP does it (top_p 0.9, top_k 50, repetition penalty 1.1). `auc`: ROC-AUC of the
    ITM probability, half true captions and half noise in the proportions of the simulated web;
    `precision` and `recall` at 0.5 on the same pairs. `auc_by_kind`: true captions against one
    kind of noise. `nucleus_true_kept`: of the sampled captions that the filter keeps, how many are
    true; `nucleus_kept`: how many it keeps.
    """

    scenes: int
    seed: int
    greedy_true: float
    nucleus_true: float
    nucleus_kept: float
    nucleus_true_kept: float
    auc: float
    precision: float
    recall: float
    auc_by_kind: dict[str, float]

    def table(self) -> str:
        """Return the figures as lines for people."""
        rows = [
            ("greedy captions true of the scene", self.greedy_true),
            ("nucleus captions true of the scene", self.nucleus_true),
            ("  kept by the filter at 0.5", self.nucleus_kept),
            ("  true among those kept", self.nucleus_true_kept),
            ("filter ROC-AUC, true against noise", self.auc),
            *((f"  against {kind}", value) for kind, value in sorted(self.auc_by_kind.items())),
            ("filter precision at 0.5", self.precision),
            ("filter recall at 0.5", self.recall),
        ]
        return "\n".join(f"{name:<38} {value:6.3f}" for name, value in rows)


def measure(models: Path, scenes: int = 2000, seed: int = HELD_OUT) -> Quality:
    """Judge the captioner and the matcher below `models` on `scenes` held-out scenes.

    Raises OSError where the models are not there.
    """
    captioner, matcher = _Captioner(models / "captioner"), _Matcher(models / "matcher")
    greedy: list[bool] = []
    sampled: list[tuple[float, bool]] = []  # (ITM probability, whether it is true)
    judged: list[tuple[float, bool, AltText]] = []
    for indices in tqdm(list(_chunks(range(scenes), _BATCH)), desc="quality", disable=None):
        shown = [sample_scene(seed, index) for index in indices]
        pixels = captioner.pixels([_picture(seed, index) for index in indices])
        greedy += _truths(captioner.greedy(pixels), shown)
        texts = captioner.nucleus(pixels, seed + indices.start)
        sampled += zip(matcher.probabilities(pixels, texts), _truths(texts, shown), strict=True)
        for rows in _pairs(seed, indices):
            texts = [text for text, _, _ in rows]
            for (_, true, kind), score in zip(
                rows, matcher.probabilities(pixels, texts), strict=True
            ):
                judged.append((score, true, kind))
    return _summed(scenes, seed, greedy, sampled, judged)


def _summed(
    scenes: int,
    seed: int,
    greedy: list[bool],
    sampled: list[tuple[float, bool]],
    judged: list[tuple[float, bool, AltText]],
) -> Quality:
    scores = np.array([score for score, _, _ in judged])
    labels = np.array([true for _, true, _ in judged])
    kinds = np.array([kind.value for _, _, kind in judged])
    kept, kept_samples = scores >= 0.5, [true for score, true in sampled if score >= 0.5]
    by_kind = {
        str(kind): roc_auc(scores[chosen], labels[chosen])
        for kind in np.unique(kinds[~labels])
        for chosen in [labels & (kinds == AltText.TRUE) | ~labels & (kinds == kind)]
    }
    return Quality(
        scenes=scenes,
        seed=seed,
        greedy_true=float(np.mean(greedy)),
        nucleus_true=float(np.mean([true for _, true in sampled])),
        nucleus_kept=len(kept_samples) / len(sampled),
        nucleus_true_kept=float(np.mean(kept_samples)) if kept_samples else 0.0,
        auc=roc_auc(scores, labels),
        precision=float(labels[kept].mean()) if kept.any() else 0.0,
        recall=float(kept[labels].mean()),
        auc_by_kind=by_kind,
    )


def _pairs(seed: int, indices: range) -> Iterator[list[tuple[str, bool, AltText]]]:
    """Yield, for the scenes of `indices`, their true captions and then their noise."""
    for noise in (_PLAIN, _only_noise()):
        rows = [web_row(seed, index, noise) for index in indices]
        yield [(row.caption, row.caption_true, row.kind) for row in rows]


def _only_noise() -> Noise:
    """Return the web's mixture of texts without true captions, none empty, none hostile.

    An empty text has no score; hostile ones often hold a true caption among their tricks.
    """
    noise = replace(Noise(), empty=0.0, hostile=0.0)
    factor = 1 / sum(share for _, share in noise.texts)
    texts = {kind.value: share * factor for kind, share in noise.texts}
    return replace(_PLAIN, **texts)  # type: ignore[arg-type]  # all of them are shares of texts


def _picture(seed: int, index: int) -> Image.Image:
    """Return the picture of a healthy row as the download stage stores it."""
    served = image_bytes(seed, web_row(seed, index, _PLAIN).picture)
    with Image.open(io.BytesIO(served)) as image:
        stored = to_jpeg(image.convert("RGB"), _REENCODED)
    return Image.open(io.BytesIO(stored))


def _truths(texts: Sequence[str], scenes: Sequence[Scene]) -> list[bool]:
    return [facts_true(text, scene) for text, scene in zip(texts, scenes, strict=True)]


def _chunks(indices: range, size: int) -> Iterator[range]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


class _Captioner:
    """The captioner by transformers' own `generate`."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer, BlipForConditionalGeneration
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        self._model: Any = BlipForConditionalGeneration.from_pretrained(  # untyped classes
            folder, local_files_only=True, dtype=torch.float32
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._processor = BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)

    def pixels(self, images: list[Image.Image]) -> Any:  # a tensor; torch is not imported here
        """Return (B, 3, 64, 64)."""
        return self._processor(images, return_tensors="pt").pixel_values

    def greedy(self, pixels: Any) -> list[str]:
        """Return the likeliest caption, token by token, of each image."""
        return self._written(pixels, do_sample=False)

    def nucleus(self, pixels: Any, seed: int) -> list[str]:
        """Return one sampled caption of each image."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._written(
                pixels, do_sample=True, top_p=0.9, top_k=50, repetition_penalty=1.1
            )

    def _written(self, pixels: Any, **decoding: Any) -> list[str]:  # generate's own options
        prompt = self._tokenizer([PROMPT] * len(pixels), return_tensors="pt")
        ids = self._model.generate(
            pixel_values=pixels,
            input_ids=prompt.input_ids,
            attention_mask=prompt.attention_mask,
            min_length=5,
            max_length=20,
            **decoding,
        )
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.removeprefix(PROMPT.strip()).strip() for text in texts]


class _Matcher:
    """The filter by transformers' own class, with [ENC] at position 0 as it was trained."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer, BlipForImageTextRetrieval

        self._model: Any = BlipForImageTextRetrieval.from_pretrained(  # untyped classes
            folder, local_files_only=True, dtype=torch.float32
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._first = self._tokenizer.get_vocab()["[ENC]"]

    def probabilities(self, pixels: Any, texts: Sequence[str]) -> list[float]:
        """Return the ITM probability of a match of each image with its text."""
        import torch

        encoded = self._tokenizer(
            [normalise_for_filter(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=35,
            return_tensors="pt",
        )
        encoded.input_ids[:, 0] = self._first
        with torch.inference_mode():
            logits = self._model(
                input_ids=encoded.input_ids,
                pixel_values=pixels,
                attention_mask=encoded.attention_mask,
                use_itm_head=True,
            ).itm_score
        probabilities: list[float] = torch.softmax(logits, dim=-1)[:, 1].tolist()
        return probabilities


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.experiments.quality", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", type=Path, nargs="?", default=MODELS, help="folder of both")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=HELD_OUT)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    quality = measure(given.models, given.scenes, given.seed)
    print(json.dumps(asdict(quality), indent=1) if given.json else quality.table())


if __name__ == "__main__":
    main()
