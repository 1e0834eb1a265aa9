"""What a checkpoint's image processor does, read from its files. Never imports torch.

transformers 5 saves it inside `processor_config.json`, earlier releases as a file of its own,
`preprocessor_config.json`; where both lie there the first wins, as in transformers. What is missing
has the defaults of transformers' classes, and sizes may be written as old releases wrote them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.errors import ModelError
from capfilt.models.families import ModelKind, read_json

_BICUBIC: Final = 3
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, which BLIP took over
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_RESCALE: Final = 1 / 255
_FILES: Final = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a processor does to an image: its square's side, mean and deviation a channel."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preprocessing_of(folder: Path, kind: ModelKind) -> Preprocessing:
    """Read the preprocessing of a checkpoint.

    BLIP's family squashes the whole image to a square; CLIP resizes the shorter edge and crops the
    centre. Both by bicubic interpolation.

    Raises:
        ModelError: there is none, or it is another.
    """
    processor = _processor(folder)
    crops = kind is ModelKind.CLIP_MATCHER
    side = _cropped_side(folder, processor) if crops else _squashed_side(folder, processor)
    _check_steps(folder, processor, crops)
    try:
        mean = tuple(float(x) for x in processor.get("image_mean") or _MEAN)
        std = tuple(float(x) for x in processor.get("image_std") or _STD)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder} has no image_mean or image_std of numbers") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError(f"{folder} normalises by {mean} and {std}; three channels are needed")
    return Preprocessing(side, mean, std)


def _processor(folder: Path) -> dict[str, Any]:  # JSON
    copy = "copy it beside the weights"
    new, old = (folder / name for name in _FILES)
    if new.is_file():
        inner = read_json(new, copy).get("image_processor")
        if isinstance(inner, dict):
            return inner
    if old.is_file():
        return read_json(old, copy)
    raise ModelError(
        f"{folder} has no {old.name}, nor a {new.name} with an image_processor; {copy}"
    )


def _squashed_side(folder: Path, processor: dict[str, Any]) -> int:
    size = _squash(processor)
    if size.get("height") is None or size.get("height") != size.get("width"):
        raise ModelError(f"{folder} resizes to {size}; BLIP takes squares of height and width")
    return int(size["height"])


def _cropped_side(folder: Path, processor: dict[str, Any]) -> int:
    size = _size(processor.get("size", 224), square=False)
    crop = _size(processor.get("crop_size", 224), square=True)
    edge = size.get("shortest_edge")
    if edge is None or {crop.get("height"), crop.get("width")} != {edge}:
        raise ModelError(
            f"{folder} resizes to {size} and crops to {crop}; CLIP crops a square of the shorter "
            "edge"
        )
    return int(edge)


def _squash(processor: dict[str, Any]) -> dict[str, int]:
    return _size(processor.get("size", 384), square=True)


def _size(size: Any, *, square: bool) -> dict[str, int]:
    """Return a size by its names; a number alone is a square or the shorter edge."""
    if isinstance(size, int) and not isinstance(size, bool):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    found = size if isinstance(size, dict) else {}
    return {name: each for name, each in found.items() if isinstance(each, int)}


def _check_steps(folder: Path, processor: dict[str, Any], crops: bool) -> None:
    """Refuse a processor that leaves out a step, or does another."""
    needed = ("do_resize", "do_rescale", "do_normalize", *(("do_center_crop",) if crops else ()))
    skipped = [name for name in needed if processor.get(name) is False]
    if skipped:
        raise ModelError(f"{folder} has {skipped[0]} false; such preprocessing is not supported")
    crop = _size(processor.get("crop_size"), square=True)
    if not crops and processor.get("do_center_crop") and crop not in ({}, _squash(processor)):
        raise ModelError(f"{folder} crops the centre to {crop}; BLIP takes the whole image")
    factor = processor.get("rescale_factor") or _RESCALE
    if not isinstance(factor, int | float) or abs(factor - _RESCALE) > 1e-9:
        raise ModelError(f"{folder} rescales by {factor}, not 1/255")
    resample = processor.get("resample", _BICUBIC)
    if resample != _BICUBIC:
        raise ModelError(f"{folder} resamples by method {resample}, not bicubic (3)")
