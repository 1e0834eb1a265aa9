"""Loading checkpoints, and refusing those that would only seem to work.

transformers fills missing weights with random numbers and warns. A filter loaded from a captioning
checkpoint would then score at random, silently, for days; so any missing or unexpected weight is
an error here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import logging as transformers_logging

from capfilt.errors import ModelError
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import ModelRef, Precision

_BICUBIC: Final = 3
# Buffers that older releases stored with the weights; they hold 0, 1, 2, … and nothing learnt.
_KNOWN_EXTRA: Final = re.compile(r"(^|\.)position_ids$")
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_checkpoint(
    model_class: type[PreTrainedModel], ref: ModelRef, device: str, precision: Precision
) -> Any:  # transformers' models are untyped
    """Load a checkpoint for inference.

    Raises:
        ModelError: weights are missing, unexpected or of other shapes, or files are unreadable.
    """
    transformers_logging.disable_progress_bar()  # a bar a worker for half a second of loading
    try:
        model, info = model_class.from_pretrained(
            ref.path, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{ref.name!r} cannot be loaded from {ref.path}: {error}") from error
    missing = sorted(info["missing_keys"])
    unexpected = sorted(k for k in info["unexpected_keys"] if not _KNOWN_EXTRA.search(k))
    mismatched = sorted(str(k) for k in info["mismatched_keys"])
    if missing or unexpected or mismatched:
        raise ModelError(
            f"{ref.name!r} does not fit {model_class.__name__}: "
            f"{_told('missing', missing)}, {_told('unexpected', unexpected)}, "
            f"{_told('of another shape', mismatched)}. What is missing would be random numbers; "
            "give a checkpoint of the right kind"
        )
    return model.to(device=device, dtype=_DTYPES[precision]).eval().requires_grad_(False)


def load_tokenizer(ref: ModelRef) -> Any:  # transformers' tokenizers are untyped
    """Load the tokenizer that lies beside the weights.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(ref.path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{ref.name!r} has no usable tokenizer in {ref.path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a processor does to an image: its square's side, mean and deviation a channel."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int


def squash_preprocessing(path: str) -> Preprocessing:
    """Read the preprocessing of the BLIP family: the whole image, squashed to a square.

    Raises:
        ModelError: it is another.
    """
    processor = BlipImageProcessorPil.from_pretrained(path, local_files_only=True)
    size = dict(processor.size)
    if size.get("height") is None or size.get("height") != size.get("width"):
        raise ModelError(f"{path} resizes to {size}; BLIP takes squares of height and width")
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Preprocessing(int(size["height"]), mean, std, int(processor.resample))


class Normaliser:
    """Turns (side, side, 3) RGB bytes into normalised pixel tensors, as the checkpoint was trained.

    Raises:
        ModelError: there is no preprocessing beside the weights, or it is not what `read` reads,
            or it resamples in another way than by bicubic interpolation.
    """

    def __init__(
        self,
        ref: ModelRef,
        device: str,
        dtype: torch.dtype,
        read: Callable[[str], Preprocessing] = squash_preprocessing,
    ) -> None:
        if not (Path(ref.path) / "preprocessor_config.json").is_file():
            raise ModelError(
                f"{ref.path} has no preprocessor_config.json; copy it beside the weights"
            )
        found = read(ref.path)
        if found.resample != _BICUBIC:
            raise ModelError(f"{ref.path} resamples by method {found.resample}, not bicubic (3)")
        self.side = found.side
        self._mean = torch.tensor(found.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(found.std, device=device).view(3, 1, 1)
        self._device, self._dtype = device, dtype

    def __call__(self, images: "list[Pixels]") -> torch.Tensor:
        """Return (B, 3, side, side) of the model's type."""
        stacked = torch.from_numpy(np.stack(images)).to(self._device)
        scaled = stacked.permute(0, 3, 1, 2).float() / 255.0
        return ((scaled - self._mean) / self._std).to(self._dtype)


def _told(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
