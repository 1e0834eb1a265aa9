"""Evaluating a captioner and a matcher on pairs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from capfilt.errors import InputError
from capfilt.evaluate.captions import CaptionScores, caption_scores, has_words
from capfilt.evaluate.judging import Judgement, Stream, judge, streams_of
from capfilt.evaluate.pairs import Pairs, left_out_told, readable
from capfilt.evaluate.retrieval import Floats, Recalls, recalls, reranked
from capfilt.models.checkpoints import resolve_model
from capfilt.models.families import ModelKind, model_kind
from capfilt.models.pixels import Framing, load_rgb
from capfilt.models.protocols import Pixels, framing_of
from capfilt.models.recipe import Beam, CaptionerRecipe, Lengths, ModelRef, Precision
from capfilt.models.vocabulary import check_encoder_token
from capfilt.progress import Advance
from capfilt.wording import counted

if TYPE_CHECKING:
    from capfilt.models.blip import BlipMatcher

_SLICE: Final = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found; None where the model or the truth for it was not given."""

    images: int
    texts: int
    retrieval_itc: Recalls | None = None
    retrieval_itm: Recalls | None = None
    captions: CaptionScores | None = None
    filter: Judgement | None = None
    streams: dict[str, Stream] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # rows that could not be judged, and why
    written: list[str] = field(default_factory=list, repr=False)

    def plain(self) -> dict[str, object]:
        """Return the figures for machines."""
        parts = {
            "retrieval_itc": self.retrieval_itc,
            "retrieval_itm": self.retrieval_itm,
            "captions": self.captions,
            "filter": self.filter,
        }
        told: dict[str, object] = {
            name: part.plain() for name, part in parts.items() if part is not None
        }
        if self.streams:
            told["streams"] = {name: stream.plain() for name, stream in self.streams.items()}
        counts = {"images": self.images, "texts": self.texts, "left_out": self.left_out}
        return {**counts, **told}

    def text(self) -> str:
        """Return the figures for people; shares in per cent."""
        lines = [f"{counted(self.images, 'image')}, {counted(self.texts, 'text')}"]
        if self.left_out:
            lines.append(f"left out: {left_out_told(self.left_out)}")
        for name, found in (("ITC", self.retrieval_itc), ("ITM", self.retrieval_itm)):
            if found is not None:
                shares = "  ".join(f"{k} {100 * v:5.1f}" for k, v in found.plain().items())
                lines.append(f"retrieval by {name}: {shares}")
        if self.captions is not None:
            bleu = "  ".join(
                f"BLEU@{n + 1} {100 * b:5.1f}" for n, b in enumerate(self.captions.bleu)
            )
            lines.append(f"captions: CIDEr {100 * self.captions.cider:6.1f}  {bleu}")
        if self.filter is not None:
            f = self.filter
            lines.append(
                f"filter: ROC-AUC {f.auc:.3f}  precision {f.precision:.3f}  recall {f.recall:.3f}  "
                f"noise {100 * f.noise_before:.1f} % before, {100 * f.noise_after:.1f} % after"
            )
        lines += [_stream_line(name, stream) for name, stream in self.streams.items()]
        return "\n".join(lines)


def _stream_line(name: str, stream: Stream) -> str:
    line = (
        f"{name or 'unnamed'}: {counted(stream.texts, 'text')}, {100 * stream.noise:.1f} % rejected"
    )
    if stream.false is None or stream.false_kept is None:
        return line
    return f"{line}; false {100 * stream.false:.1f} % before, {100 * stream.false_kept:.1f} % after"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evaluate. Captions by beam search of `num_beams`, as BLIP does (section 5.2)."""

    top: int = 128  # candidates that the ITM head re-ranks (section 5.1)
    threshold: float = 0.5
    num_beams: int = 3
    prompt: str = "a picture of "
    lengths: Lengths = Lengths()
    precision: Precision = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.top < 1:
            raise InputError(f"--top {self.top}: ITM re-ranks at least 1 candidate")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"--threshold {self.threshold} must be in [0, 1]")


@dataclass(frozen=True, slots=True)
class Models:
    """What is evaluated; None: not given."""

    captioner: ModelRef | None
    matcher: ModelRef | None

    @property
    def count(self) -> int:
        """How many models there are."""
        return (self.captioner is not None) + (self.matcher is not None)


def find_models(captioner: str | None, matcher: str | None) -> Models:
    """Find and check models by their names, before any data are read.

    Raises:
        InputError: none is given, or one cannot be evaluated.
    """
    if captioner is None and matcher is None:
        raise InputError("nothing to evaluate: give --captioner, --matcher or both")
    found = Models(
        None if captioner is None else resolve_model(captioner, "captioner"),
        None if matcher is None else resolve_model(matcher, "matcher"),
    )
    if found.matcher is not None:
        folder = Path(found.matcher.path)
        if model_kind(folder, "matcher") is not ModelKind.BLIP_MATCHER:
            raise InputError(f"{matcher!r} is no BLIP: of matchers, only BLIP's are evaluated")
        check_encoder_token(folder, found.matcher.name)
    return found


def evaluate(pairs: Pairs, models: Models, how: Settings, told: Advance) -> Evaluation:
    """Evaluate the models that are given; `told` hears of images done.

    Raises:
        InputError: no image can be decoded.
    """
    captioner, matcher = models.captioner, models.matcher
    pairs = readable(pairs)
    if not pairs.images:
        raise InputError(f"nothing to evaluate on: {left_out_told(pairs.left_out)}")
    references = pairs.true()
    _check(pairs, references, captions=captioner is not None)
    written = _written(captioner, pairs, how, told) if captioner else []
    scores = caption_scores(written, references.texts) if captioner else None
    found = Evaluation(
        len(pairs.images), pairs.count, captions=scores, written=written, left_out=pairs.left_out
    )
    if matcher is None:
        return found
    itc, itm, judged, streams = _matched(matcher, pairs, how, told)
    return replace(found, retrieval_itc=itc, retrieval_itm=itm, filter=judged, streams=streams)


def _check(pairs: Pairs, true: Pairs, *, captions: bool) -> None:
    """Refuse what a model would be asked for in vain, before it is asked."""
    if not true.images:
        raise InputError(
            "no text is true of its image, so there is nothing to retrieve or to write"
        )
    if captions and len(true.images) != len(pairs.images):
        raise InputError(
            "captions are compared with true texts, and some images have none; evaluate the "
            "captioner on other data, or leave --truth-col out"
        )
    if captions and not any(has_words(text) for own in true.texts for text in own):
        raise InputError("captions are compared with words, and no text here has one")


def _written(ref: ModelRef, pairs: Pairs, how: Settings, told: Advance) -> list[str]:
    from capfilt.models.loaders import open_captioner

    captioner = open_captioner(
        CaptionerRecipe(
            ref,
            decoding=Beam(how.num_beams),
            lengths=how.lengths,
            prompt=how.prompt,
            num_captions=1,
            seed=0,
            precision=how.precision,
        ),
        device=how.device,
    )
    texts: list[str] = []
    for start in range(0, len(pairs.images), _SLICE):
        part = pairs.images[start : start + _SLICE]
        pixels = _pixels(part, captioner.side, framing_of(captioner))
        texts += [own for [own] in captioner.caption(pixels, [""] * len(pixels))]
        told(len(pixels))
    return texts


def _matched(
    ref: ModelRef, pairs: Pairs, how: Settings, told: Advance
) -> tuple[Recalls, Recalls, Judgement | None, dict[str, Stream]]:
    from capfilt.models.blip import BlipMatcher

    matcher = BlipMatcher(ref, "enc", how.device, how.precision)
    judged, streams = _judged(matcher, pairs, how)
    true = pairs.true()
    owners = [image for image, own in enumerate(true.texts) for _ in own]
    texts = [text for own in true.texts for text in own]
    parts = []
    for start in range(0, len(true.images), _SLICE):
        part = true.images[start : start + _SLICE]
        parts.append(matcher.embed(_pixels(part, matcher.side)))
        told(len(part))
    similarity = np.concatenate(parts) @ matcher.embed_texts(texts).T
    by_text, by_image = reranked(similarity, how.top, _rescorer(matcher, true.images, texts))
    texts_found, images_found = recalls(by_text, owners), recalls(by_image, owners)
    itm = Recalls(text=texts_found.text, image=images_found.image)
    return recalls(similarity, owners), itm, judged, streams


def _judged(
    matcher: "BlipMatcher", pairs: Pairs, how: Settings
) -> tuple[Judgement | None, dict[str, Stream]]:
    """Judge every text where its truth or its origin is known."""
    if pairs.truth is None and pairs.origins is None:
        return None, {}
    scores: list[float] = []
    for start in range(0, len(pairs.images), _SLICE):
        part = slice(start, start + _SLICE)
        pixels = _pixels(pairs.images[part], matcher.side)
        itm, _ = matcher.match(pixels, pairs.texts[part])
        scores += [score for own in itm for score in own]
    found = np.nan_to_num(np.array(scores), nan=-1.0)  # of a text of which nothing was left
    truth = None
    if pairs.truth is not None:
        truth = np.array([true for own in pairs.truth for true in own])
    origins = [origin for own in pairs.origins or [] for origin in own]
    streams = streams_of(found, origins, truth, how.threshold) if origins else {}
    return (None if truth is None else judge(found, truth, how.threshold)), streams


def _rescorer(
    matcher: "BlipMatcher", images: list[bytes], texts: list[str]
) -> Callable[["np.typing.NDArray[np.int64]", "np.typing.NDArray[np.int64]"], Floats]:
    """Return ITM probabilities for pairs of numbers, each image encoded once a slice of them."""

    def rescore(
        image_numbers: "np.typing.NDArray[np.int64]", text_numbers: "np.typing.NDArray[np.int64]"
    ) -> Floats:
        out = np.zeros(len(image_numbers))
        order = np.argsort(image_numbers, kind="stable")
        wanted = np.unique(image_numbers)
        for start in range(0, len(wanted), _SLICE):
            part = wanted[start : start + _SLICE]
            rows = order[np.isin(image_numbers[order], part)]
            pixels = _pixels([images[number] for number in part], matcher.side)
            own = [rows[image_numbers[rows] == number] for number in part]
            asked = [[texts[text_numbers[row]] for row in each] for each in own]
            itm, _ = matcher.match(pixels, asked)
            for each, scores in zip(own, itm, strict=True):
                out[each] = np.nan_to_num(np.array(scores), nan=-1.0)
        return out

    return rescore


def _pixels(images: list[bytes], side: int, framing: Framing = "squash") -> list[Pixels]:
    return [load_rgb(image, side, framing) for image in images]
