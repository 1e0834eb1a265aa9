"""What a model is trained on: folders of image-text pairs, and how much of each."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from capfilt.errors import InputError
from capfilt.fingerprint import NOT_IDENTITY

Origin = Literal["web", "synthetic", "human"]  # the values of the export's column `origin`
Texts = Literal["all", "one"]
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)


@dataclass(frozen=True, slots=True)
class Stream:
    """The pairs of one folder: an export, or Parquet in the Hugging Face layout.

    folder: with a manifest, the files that it lists; otherwise those that match `pattern`. They
        have the columns `image` (struct with `bytes`) and `text`; `key` and `origin` are optional.
    origins: whose texts to take; () is everybody's.
    weight: this stream's part of the mixture, relative to the other weights. None, for all
        streams alike: each sample once an epoch.
    texts: "all" makes each row a sample; "one" makes each image a sample, with one of its texts
        drawn anew in every epoch (BLIP-2, arXiv 2301.12597, section 3.4). Rows of an image must
        lie together and share their `key`, as they do in an export.
    default_origin: of rows whose file has no column `origin`.

    Raises:
        InputError: an origin, weight or way of texts that does not exist.
    """

    folder: Path = field(metadata=NOT_IDENTITY)  # the data are known by what they hold
    origins: tuple[Origin, ...] = ()
    weight: float | None = None
    texts: Texts = "all"
    pattern: str = field(default="data/train-*.parquet", metadata=NOT_IDENTITY)
    default_origin: Origin = "human"

    def __post_init__(self) -> None:
        """Check everything that needs no file."""
        for origin in (*self.origins, self.default_origin):
            if origin not in ORIGINS:
                known = ", ".join(ORIGINS)
                raise InputError(f"{self.folder}: the origin {origin!r} is unknown; take {known}")
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError(
                f"{self.folder}: weight={self.weight} must be positive; leave the stream out "
                "instead of giving it nothing"
            )
        if self.texts not in get_args(Texts):
            raise InputError(f"{self.folder}: texts={self.texts!r}; it is 'all' or 'one'")


def weighted(given: str) -> tuple[str, float | None]:
    """Return folder and weight of `DIR` or `DIR=WEIGHT`; a folder may have "=" in its name.

    Raises:
        InputError: the weight is no number.
    """
    if Path(given).is_dir() or "=" not in given:
        return given, None
    folder, _, weight = given.rpartition("=")
    try:
        return folder, float(weight) if weight else None
    except ValueError as error:
        raise InputError(
            f"{given} is no folder, and {weight!r} no weight; give DIR or DIR=0.5"
        ) from error


@dataclass(frozen=True, slots=True)
class Mixture:
    """One or more streams, read side by side.

    An epoch is as many samples as all streams have together. Without weights it is each of them
    once. With weights, each stream gives its exact share of the epoch (to the nearest sample) and
    goes through its own samples at its own pace, each once before any comes again.
    """

    streams: tuple[Stream, ...]

    def __post_init__(self) -> None:
        """Check that the streams fit together."""
        if not self.streams:
            raise InputError("a mixture needs at least one stream")
        given = [stream.weight is not None for stream in self.streams]
        if any(given) and not all(given):
            lacking = self.streams[given.index(False)].folder
            raise InputError(f"{lacking} has no weight; give every stream one, or none")

    def shares(self, samples: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many samples each stream gives an epoch, of the `samples` that each has.

        Raises:
            InputError: a weight is so small that its stream would never be read.
        """
        weights = [stream.weight for stream in self.streams if stream.weight is not None]
        if not weights:
            return samples
        total, whole = sum(samples), math.fsum(weights)
        exact = [total * weight / whole for weight in weights]
        shares = [math.floor(each) for each in exact]
        # The largest remainders get what is left; equal ones in the order of the streams.
        by_remainder = sorted(range(len(exact)), key=lambda j: shares[j] - exact[j])
        for place in by_remainder[: total - sum(shares)]:
            shares[place] += 1
        for stream, share in zip(self.streams, shares, strict=True):
            if not share:
                raise InputError(
                    f"{stream.folder}: weight={stream.weight} is less than one sample in an epoch "
                    f"of {total}; raise it or leave the stream out"
                )
        return tuple(shares)
