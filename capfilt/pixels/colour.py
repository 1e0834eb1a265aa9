"""Colours: embedded ICC profiles that are not sRGB are converted to it, as browsers do."""

import functools
import io
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageCms

Convert = Callable[[Image.Image], Image.Image]

_SAME: Final = 2  # a profile that moves no colour further, of 255, is sRGB for us


def to_srgb(image: Image.Image) -> Convert | None:
    """Return what converts this image's colours by its own profile; None where that does nothing.

    A profile that cannot be read, or is of another colour model than the pixels, is passed over,
    as viewers do.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    grey = image.mode in {"1", "L", "LA", "La", "F"} or image.mode.startswith("I")
    return _profile_transform(profile, "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB")


@functools.lru_cache(maxsize=64)
def _profile_transform(profile: bytes, model: str) -> Convert | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != {"L": "GRAY"}.get(model, model):
            return None
        transform = ImageCms.buildTransform(source, _srgb(), model, "RGB")
        palette = _sample_colours(model)
        moved = np.asarray(ImageCms.applyTransform(palette, transform)).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if model != "CMYK" and np.abs(moved - np.asarray(palette.convert("RGB"))).max() <= _SAME:
        return None
    return lambda strip: _applied(strip if strip.mode == model else strip.convert(model), transform)


def _applied(strip: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    shown = ImageCms.applyTransform(strip, transform)
    if shown is None:  # only where it works in place
        raise ValueError("no transformed image")
    return shown


def _sample_colours(model: str) -> Image.Image:
    """Return every combination of nine levels (grey: all 256), to see what a profile does."""
    if model == "CMYK":
        return Image.new("CMYK", (1, 1))
    if model == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))


@functools.lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.lru_cache(maxsize=1)
def lab_to_srgb() -> Convert:
    """Return what converts the mode LAB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    transform = ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB")
    return lambda strip: _applied(strip, transform)
