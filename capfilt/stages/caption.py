"""The caption stage: K synthetic texts for every image."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from capfilt import schema
from capfilt.errors import InputError
from capfilt.fingerprint import NOT_IDENTITY
from capfilt.models.protocols import Captioner, framing_of
from capfilt.models.recipe import Beam, Lengths, ModelRef, Nucleus, Precision
from capfilt.option import DECODING, MODELS, REQUIRED, check_options, option
from capfilt.stage import Resource, Transform
from capfilt.stages.decoding import ImageTransform, decode_rows, rows_for, threads_for

DEFAULT_PROMPT = "a picture of "


@dataclass(frozen=True)
class Caption:
    """Write `num_captions` texts an image by nucleus sampling or beam search.

    `lengths` count tokens with the prompt. Two runs with equal fields write equal texts.
    """

    model: ModelRef = option(
        REQUIRED,
        "Folder, hub name (also NAME@REVISION), or 'embedded'",
        flag="captioner",
        panel=MODELS,
        given_as=str,
        shown="embedded",
    )
    num_captions: int = option(1, "Captions an image", panel=DECODING, at_least=1)
    decoding: Nucleus | Beam = Nucleus()
    lengths: Lengths = Lengths()
    prompt: str = option(
        DEFAULT_PROMPT,
        "What captions begin with; of an InstructBLIP the instruction",
        panel=DECODING,
        shown=repr(DEFAULT_PROMPT),
    )
    seed: int = option(0, "Of the sampling noise", panel=DECODING)
    precision: Precision = option("fp32", "Of the models' arithmetic", panel=MODELS)
    device: str = field(default="cpu", metadata=NOT_IDENTITY)

    name = "caption"
    version = 2
    resource: ClassVar[Resource] = "model"
    needs = ("key", "image")
    adds = schema.CAPTION

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        check_options(self)
        if isinstance(self.decoding, Beam) and self.num_captions > self.decoding.num_beams:
            raise InputError(
                f"{self.num_captions} captions need as many beams; num_beams is "
                f"{self.decoding.num_beams}"
            )

    @property
    def rows_per_call(self) -> int:
        """Rows wanted at a time."""
        return rows_for(self.device)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the captioner, and yield the transform."""
        from capfilt.models.opening import open_captioner

        captioner = open_captioner(
            self.model,
            decoding=self.decoding,
            lengths=self.lengths,
            prompt=self.prompt,
            num_captions=self.num_captions,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )
        run = functools.partial(caption_batch, captioner)
        threads = threads_for(self.device)
        yield ImageTransform(run, captioner.side, threads, framing_of(captioner))


def caption_batch(captioner: Captioner, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Caption the rows that have an image; the others get nulls, undecodable ones a reason."""
    places, images, errors = decode_rows(
        batch.column("image"), captioner.side, framing_of(captioner)
    )
    keys = batch.column("key").to_pylist()
    texts: list[list[str] | None] = [None] * batch.num_rows
    written = captioner.caption(images, [keys[place] for place in places])
    for place, own in zip(places, written, strict=True):
        texts[place] = own
    return pa.record_batch(
        [pa.array(texts, pa.list_(pa.string())), pa.array(errors, pa.string())],
        schema=schema.CAPTION,
    )
