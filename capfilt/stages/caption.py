"""The caption stage: K synthetic texts for every image."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.fingerprint import NOT_IDENTITY
from capfilt.models.protocols import Captioner, framing_of
from capfilt.models.recipe import CaptionerRecipe
from capfilt.stage import Resource, Transform
from capfilt.stages.decoding import Decoded, ImageTransform, decoded_for, rows_for


@dataclass(frozen=True)
class Caption(CaptionerRecipe):
    """Write `num_captions` texts an image by nucleus sampling or beam search."""

    device: str = field(default="cpu", metadata=NOT_IDENTITY)

    name = "caption"
    version = 2
    resource: ClassVar[Resource] = "model"
    needs = ("key", "image", "source_status")
    adds = schema.CAPTION

    @property
    def rows_per_call(self) -> int:
        """Rows wanted at a time."""
        return rows_for(self.device)

    def captioner(self) -> Captioner:
        """Load the checkpoint `model` as a captioner; a captioner of one's own overrides this."""
        from capfilt.models.loaders import open_captioner

        return open_captioner(self, self.device)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the captioner, and yield the transform."""
        captioner = self.captioner()
        run = functools.partial(caption_batch, captioner)
        yield ImageTransform(run, captioner.side, framing_of(captioner))


def caption_batch(
    captioner: Captioner, batch: pa.RecordBatch, images: Decoded | None = None
) -> pa.RecordBatch:
    """Caption the rows that have an image; the others get nulls, undecodable ones a reason.

    `images` are the batch's pictures at the captioner's side and framing; None: they are decoded.
    """
    found = _first_texts(batch, decoded_for(captioner, batch) if images is None else images)
    keys = batch.column("key").to_pylist()
    texts: list[list[str] | None] = [None] * batch.num_rows
    written = captioner.caption(found.images, [keys[place] for place in found.places])
    for place, own in zip(found.places, written, strict=True):
        texts[place] = own
    return pa.record_batch(
        [pa.array(texts, pa.list_(pa.string())), pa.array(found.errors, pa.string())],
        schema=schema.CAPTION,
    )


def _first_texts(batch: pa.RecordBatch, images: Decoded) -> Decoded:
    """Leave out the rows that only bring another text of an image: it is captioned in its first."""
    again = pc.equal(batch.column("source_status"), schema.ANOTHER_TEXT).to_pylist()
    there = [(place, image) for place, image in zip(*images[:2], strict=True) if not again[place]]
    errors = [None if other else error for other, error in zip(again, images.errors, strict=True)]
    return Decoded([place for place, _ in there], [image for _, image in there], errors)
