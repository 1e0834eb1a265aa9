"""Decoding a batch of encoded images for a model."""

import pyarrow as pa

from capfilt.images import UndecodableImage, load_rgb
from capfilt.models.protocols import Pixels


def decode_rows(column: pa.Array, side: int) -> tuple[list[int], list[Pixels], list[str | None]]:
    """Decode the images of a column to (side, side, 3).

    Returns (places of the rows that have an image, their pixels, a reason for every row whose
    image cannot be decoded or None). A row without an image is in neither.
    """
    places: list[int] = []
    images: list[Pixels] = []
    errors: list[str | None] = [None] * len(column)
    for place, data in enumerate(column.to_pylist()):
        if data is None:
            continue
        try:
            images.append(load_rgb(data, side))
            places.append(place)
        except UndecodableImage as error:
            errors[place] = str(error)
    return places, images, errors
