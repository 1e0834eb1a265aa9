"""Scenes to pictures: antialiased shapes with a little jitter, and JPEG bytes."""

import io
import math
from random import Random
from typing import Final

from PIL import Image, ImageDraw

from capfilt.simweb.scenes import RADIUS, Item, Scene

RGB = tuple[int, int, int]
_COLOURS: Final[dict[str, RGB]] = {
    "red": (215, 30, 35),
    "green": (30, 160, 50),
    "blue": (35, 60, 215),
    "yellow": (245, 225, 40),
    "purple": (125, 40, 160),
    "orange": (245, 135, 25),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
    "grey": (140, 140, 140),
    "pink": (245, 175, 195),
    "brown": (110, 75, 50),
    "teal": (70, 165, 165),
}
_SUPERSAMPLE: Final = 2
_JITTER: Final = 8  # of each colour channel, of 255


def render(scene: Scene, width: int, height: int, rng: Random) -> Image.Image:
    """Draw a scene as an RGB image of `width` × `height` pixels; `rng` gives the jitter."""
    canvas = Image.new(
        "RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), _tint(scene.background, rng)
    )
    draw = ImageDraw.Draw(canvas)
    for item in scene.items:
        _draw_item(draw, item, canvas.size, rng)
    return canvas.reduce(_SUPERSAMPLE)


def to_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode as JPEG of this quality, 1 to 95."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, size: tuple[int, int], rng: Random) -> None:
    width, height = size
    radius = RADIUS[item.size] * min(size) * rng.uniform(0.93, 1.07)
    x, y = item.x * width, item.y * height
    colour = _tint(item.colour, rng)
    box = (x - radius, y - radius, x + radius, y + radius)
    if item.shape == "circle":
        draw.ellipse(box, fill=colour)
    elif item.shape == "ring":
        draw.ellipse(box, outline=colour, width=max(2, round(radius * 0.38)))
    else:
        turn = rng.uniform(-0.08, 0.08)
        corners = _outline(item.shape)
        draw.polygon(
            [
                (
                    x + radius * (px * math.cos(turn) - py * math.sin(turn)),
                    y + radius * (px * math.sin(turn) + py * math.cos(turn)),
                )
                for px, py in corners
            ],
            fill=colour,
        )


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape in the square [-1, 1]², y downwards."""
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "cross":
        arm = 0.32
        corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
        return [p for turn in range(4) for p in (_quarter(q, turn) for q in corner)]
    points = [(i * math.pi / 5, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
    return [(far * math.sin(angle), -far * math.cos(angle)) for angle, far in points]


def _quarter(point: tuple[float, float], turns: int) -> tuple[float, float]:
    for _ in range(turns):
        point = (-point[1], point[0])
    return point


def _tint(name: str, rng: Random) -> RGB:
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-_JITTER, _JITTER))) for channel in _COLOURS[name]
    )
    return red, green, blue
