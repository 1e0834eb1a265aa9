"""Image-text retrieval: recall at k in both directions (BLIP, section 5.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

KS: Final = (1, 5, 10)
Floats = npt.NDArray[np.floating]
# Scores (n,) of pairs (image numbers, text numbers), higher is better.
Rescore = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Floats]


@dataclass(frozen=True, slots=True)
class Recalls:
    """Shares in [0, 1]: TR@k finds a text of the image, IR@k finds the image of the text."""

    text: dict[int, float]
    image: dict[int, float]

    def plain(self) -> dict[str, float]:
        """Return `TR@1` … `IR@10`."""
        return {
            **{f"TR@{k}": share for k, share in self.text.items()},
            **{f"IR@{k}": share for k, share in self.image.items()},
        }


def recalls(similarity: Floats, owners: Sequence[int], ks: Sequence[int] = KS) -> Recalls:
    """Judge a similarity matrix (images, texts); owners[t] is the image of text t.

    Of several texts of one image any is right, as is usual on COCO. Equal similarities rank in the
    order of the numbers.

    Raises:
        ValueError: an image has no text, or the shapes do not fit.
    """
    images, texts = similarity.shape
    owner = np.asarray(owners)
    if len(owner) != texts or set(owner.tolist()) != set(range(images)):
        raise ValueError(f"{len(owner)} owners for {images} images and {texts} texts")
    by_image = _first_right(similarity, owner[None, :] == np.arange(images)[:, None])
    by_text = _first_right(similarity.T, np.arange(images)[None, :] == owner[:, None])
    return Recalls(
        {k: float((by_image < k).mean()) for k in ks}, {k: float((by_text < k).mean()) for k in ks}
    )


def reranked(similarity: Floats, top: int, rescore: Rescore) -> tuple[Floats, Floats]:
    """Re-rank the `top` most similar candidates of each image and of each text by `rescore`.

    As BLIP does with its ITM head: what is beyond the `top` stays behind, in its order. Returns
    two matrices (images, texts): ranks of texts for each image, ranks of images for each text,
    the higher the better.
    """
    return _rescored(similarity, top, rescore), _rescored(
        similarity.T, top, lambda texts, images: rescore(images, texts)
    ).T


def _rescored(similarity: Floats, top: int, rescore: Rescore) -> Floats:
    rows, columns = similarity.shape
    top = min(top, columns)
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    scores = rescore(np.repeat(np.arange(rows), top), best.ravel()).reshape(rows, top)
    order = np.argsort(-scores, axis=1, kind="stable")  # equal ones stay as they were
    ranks = np.argsort(np.argsort(-similarity, axis=1, kind="stable"), axis=1)
    out = -ranks.astype(np.float64)
    np.put_along_axis(out, np.take_along_axis(best, order, 1), -np.arange(float(top))[None], 1)
    return out


def _first_right(similarity: Floats, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the rank, from 0, of the first right candidate of every row."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    found: npt.NDArray[np.int64] = np.take_along_axis(right, order, 1).argmax(axis=1)
    return found
