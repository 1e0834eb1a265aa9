"""A streaming reader over exported shards: the same batches for any number of workers or ranks.

The sequence of samples is a function of the data, the seed and the window (see order.py); batch b
is its samples from b * batch_size on, through the ends of epochs, and rank r of w takes the r-th of
w equal parts of each batch. So a place in the sequence is all that a resume needs.

Workers are threads: Pillow decodes and resizes without Python's lock, and pixels need no copying
between processes. One more thread reads row groups. Every rank reads every row group and decodes
its own part of the images, which is where the time goes.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice

import numpy as np

from capfilt.errors import InputError
from capfilt.fingerprint import NOT_IDENTITY, fingerprint
from capfilt.models.pixels import UndecodableImage
from capfilt.train.data.augment import Augment, Pixels, augmented, decode, squash
from capfilt.train.data.batch import Batch, Skip
from capfilt.train.data.index import open_stream
from capfilt.train.data.mixture import Mixture
from capfilt.train.data.order import draw_samples
from capfilt.train.data.randomness import rng_of
from capfilt.train.data.rows import Sample
from capfilt.train.data.samples import Source

SampleNumbers = Sequence[tuple[int, int]]  # (stream, n-th sample of the stream)
Made = tuple[Sample, Pixels] | Skip


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How samples are read.

    batch_size: samples of a step, over all ranks together.
    side: of the square images, in pixels.
    epochs: after so many the reader ends (None: never); the last batch may be smaller, unless
        `drop_last`.
    augment: what is done to images; None squashes them as they are outside training.
    window: about so many samples are held and mixed at a time, of each stream and on each rank. A
        row group that is larger is held whole.
    workers: threads that decode; 0 does everything in the caller's.
    prefetch: batches that workers are ahead.
    captions: texts of an image at once; more than one needs streams with texts="one".
    """

    batch_size: int
    side: int
    seed: int = 0
    epochs: int | None = None
    drop_last: bool = False
    augment: Augment | None = None
    window: int = 4096
    workers: int = field(default=0, metadata=NOT_IDENTITY)
    prefetch: int = field(default=4, metadata=NOT_IDENTITY)
    captions: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low in _LOWEST:
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value} must be {low} or more")


_LOWEST = (
    ("batch_size", 1),
    ("side", 1),
    ("epochs", 0),
    ("window", 1),
    ("workers", 0),
    ("prefetch", 1),
    ("captions", 1),
)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has come: `position` samples of `epoch`, over all ranks together.

    `order` is the digest of all that the sequence depends on. The fields are JSON's own types:
    `asdict(cursor)` writes it, `Cursor(**plain)` reads it. It does not depend on the rank, the
    number of ranks or the size of batches: all of these may change in a resume.
    """

    epoch: int
    position: int
    order: str


class Reader:
    """Batches of a mixture, from `cursor` on; iterating goes on where the last iteration ended.

    Raises:
        InputError: data, columns, ranks or a cursor that do not fit.
        DamageError: a file that is not as its manifest says, or, later, cannot be read.
    """

    def __init__(
        self,
        mixture: Mixture,
        reading: ReaderOptions,
        rank: int = 0,
        world_size: int = 1,
        cursor: Cursor | None = None,
    ) -> None:
        if not 0 <= rank < world_size or reading.batch_size % world_size:
            raise InputError(
                f"rank {rank} of {world_size} with batches of {reading.batch_size}: the batch must "
                "divide by the number of ranks"
            )
        if reading.captions > 1 and any(stream.texts != "one" for stream in mixture.streams):
            raise InputError(
                f"{reading.captions} captions an image: the texts of an image must be taken "
                "together (texts='one', --one-text)"
            )
        self._reading, self._rank, self._world_size = reading, rank, world_size
        self._streams = tuple(open_stream(stream) for stream in mixture.streams)
        self.samples = tuple(int(index.samples.sum()) for index in self._streams)
        self.shares = mixture.shares(self.samples)
        content = [index.digest for index in self._streams]
        self._order = fingerprint((content, mixture, reading.seed, reading.window))
        self._done = self._place_of(cursor)
        self.skipped: Counter[str] = Counter()  # reasons, in the batches of this rank so far
        self.groups_read = 0  # row groups, by this rank so far

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch, over all ranks together, those that will be skipped included."""
        return sum(self.samples)

    def cursor(self) -> Cursor:
        """Return the place after the batches that were given out; the last of them counts."""
        epoch, position = divmod(self._done, self.epoch_samples)
        return Cursor(epoch, position, self._order)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._ahead() if self._reading.workers else self._inline()
        for stop, batch in batches:
            self._done = stop
            self.skipped.update(skip.reason for skip in batch.skipped)
            yield batch

    def _place_of(self, cursor: Cursor | None) -> int:
        if cursor is None:
            return 0
        if cursor.order != self._order:
            raise InputError(
                "the checkpoint was made with other data, weights, seed or window: go on with the "
                "same ones, or begin a new training"
            )
        if cursor.epoch < 0 or not 0 <= cursor.position < self.epoch_samples:
            raise InputError(f"{cursor} lies outside of the data; take another checkpoint")
        return cursor.epoch * self.epoch_samples + cursor.position

    def _plans(self) -> Iterator[tuple[int, SampleNumbers]]:
        """Yield, for each batch, where it ends in the whole sequence and this rank's part of it."""
        reading, start = self._reading, self._done
        end = None if reading.epochs is None else reading.epochs * self.epoch_samples
        epoch, position = divmod(start, self.epoch_samples)
        sequence = draw_samples(self.shares, reading.seed, epoch, position)
        while end is None or start < end:
            size = reading.batch_size if end is None else min(reading.batch_size, end - start)
            if size < reading.batch_size and reading.drop_last:
                return
            drawn = list(islice(sequence, size))
            first, last = (size * r // self._world_size for r in (self._rank, self._rank + 1))
            start += size
            yield start, drawn[first:last]

    def _inline(self) -> Iterator[tuple[int, Batch]]:
        sources = self._sources()
        for stop, plan in self._plans():
            samples = [sources[stream].sample(n) for stream, n in plan]
            yield stop, _batch(_prepared(samples, self._reading), self._reading.side)

    def _ahead(self) -> Iterator[tuple[int, Batch]]:
        """Read in one thread, in order, and decode in others; at most `prefetch` batches ahead."""
        reading, sources = self._reading, self._sources()
        waiting: deque[tuple[int, Future[list[Future[list[Made]]]]]] = deque()
        with (
            ThreadPoolExecutor(reading.workers, "capfilt-decode") as pool,
            ThreadPoolExecutor(1, "capfilt-read") as fetcher,
        ):
            begin = partial(_begin, sources, reading, pool)
            try:
                for stop, plan in self._plans():
                    waiting.append((stop, fetcher.submit(begin, plan)))
                    if len(waiting) > reading.prefetch:
                        yield _finished(*waiting.popleft(), reading.side)
                while waiting:
                    yield _finished(*waiting.popleft(), reading.side)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _sources(self) -> list[Source]:
        reading = self._reading
        return [
            Source(index, reading.window, (reading.seed, number), self._count, reading.captions)
            for number, index in enumerate(self._streams)
        ]

    def _count(self) -> None:
        self.groups_read += 1


def _begin(
    sources: Sequence[Source], reading: ReaderOptions, pool: ThreadPoolExecutor, plan: SampleNumbers
) -> list[Future[list[Made]]]:
    """Read the encoded samples of a batch and hand each worker its part."""
    samples = [sources[stream].sample(n) for stream, n in plan]
    part = -(-len(samples) // reading.workers) or 1
    parts = (samples[start : start + part] for start in range(0, len(samples), part))
    return [pool.submit(_prepared, each, reading) for each in parts]


def _finished(stop: int, begun: Future[list[Future[list[Made]]]], side: int) -> tuple[int, Batch]:
    parts = (future.result() for future in begun.result())
    return stop, _batch(list(chain.from_iterable(parts)), side)


def _prepared(samples: Sequence[Sample | Skip], reading: ReaderOptions) -> list[Made]:
    return [each if isinstance(each, Skip) else _made(each, reading) for each in samples]


def _made(sample: Sample, reading: ReaderOptions) -> Made:
    """Decode and augment one sample; what cannot be decoded is skipped."""
    try:
        image = decode(sample.data)
    except UndecodableImage as error:
        return Skip(sample.key, f"undecodable image ({error})")
    if reading.augment is None:
        return sample, squash(image, reading.side)
    rng = rng_of("augment", *sample.seed)
    # What is done to the image is done to all that is said of it: as lines of one text.
    said = [sample.text, *sample.others]
    said += [] if sample.hard_negative is None else [sample.hard_negative]
    lines = "\n".join(" ".join(text.split("\n")) for text in said)
    pixels, told = augmented(image, lines, reading.side, reading.augment, rng)
    text, *others = told.split("\n")
    negative = others.pop() if sample.hard_negative is not None else None
    return replace(sample, text=text, others=tuple(others), hard_negative=negative), pixels


def _batch(made: list[Made], side: int) -> Batch:
    good = [each for each in made if not isinstance(each, Skip)]
    pixels = np.stack([each for _, each in good]) if good else np.zeros((0, side, side, 3), "u1")
    return Batch(
        pixels,
        tuple(sample.text for sample, _ in good),
        tuple(sample.key for sample, _ in good),
        tuple(sample.origin for sample, _ in good),
        tuple(each for each in made if isinstance(each, Skip)),
        tuple(sample.others for sample, _ in good if sample.others),
        tuple(sample.hard_negative for sample, _ in good),
    )
