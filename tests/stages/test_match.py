"""What the match stages make of a model's answers."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image

from capfilt.errors import ModelError
from capfilt.stages.match import match_web_batch


class Broken:
    """A matcher whose image tower overflows for pictures that are not black."""

    side = 8

    def match(
        self, images: Sequence[npt.NDArray[np.uint8]], texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        scores = [[0.5] * len(own) for own in texts]
        return scores, scores

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        return np.array([[np.inf if image.any() else 1.0, 0.0] for image in images], np.float32)


def batch(*levels: int) -> pa.RecordBatch:
    pictures = []
    for level in levels:
        out = io.BytesIO()
        Image.new("L", (8, 8), level).save(out, "PNG")
        pictures.append(out.getvalue())
    columns = {"image": pa.array(pictures, pa.binary()), "caption": ["a text"] * len(levels)}
    return pa.RecordBatch.from_pydict(columns)


def test_embeddings_that_are_no_numbers_end_the_run_and_book_nothing() -> None:
    assert match_web_batch(Broken(), batch(0, 0)).num_rows == 2
    with pytest.raises(ModelError, match="image embeddings are no numbers"):
        match_web_batch(Broken(), batch(0, 0, 9))
