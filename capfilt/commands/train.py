"""What `capfilt train` does."""

import contextlib
from typing import TYPE_CHECKING

from capfilt.engine.machine import choose_devices
from capfilt.engine.precision import precision_warning
from capfilt.errors import InputError
from capfilt.progress import Progress, Say, hear_metrics
from capfilt.train.ranks import local_rank, rank

if TYPE_CHECKING:
    from capfilt.train.options import TrainOptions
    from capfilt.train.training import Trained


def train(options: "TrainOptions", progress: Progress, say: Say) -> "Trained":
    """Run a training, or go on with it.

    Raises:
        InputError: options or data that cannot be used.
    """
    from capfilt.train.data.reader import Reader, ReaderOptions
    from capfilt.train.loop import LoopOptions
    from capfilt.train.options import augment_of, mixture_of, recipe_of
    from capfilt.train.process import alone
    from capfilt.train.start import lacking, start_of
    from capfilt.train.training import Training
    from capfilt.train.training import train as trained

    device = _own(choose_devices(options.device))
    if options.kind == "captioner" and options.queue_size is not None:
        raise InputError("--queue-size has no effect on a captioner, which has no ITC")
    name, fresh = _start(options.like, options.init)
    start = start_of(name, fresh=fresh)
    for part in lacking(start, options.kind) if rank() == 0 else ():
        say(
            f"{name} has no {part}: what only a {part} has begins at random; a checkpoint that "
            "`capfilt train pretrain` left has both"
        )
    slow = precision_warning([options.precision], [device]) if rank() == 0 else None
    if slow is not None:
        say(slow)
    mixture = mixture_of(options)
    samples = Reader(mixture, ReaderOptions(batch_size=1, side=1)).epoch_samples
    recipe = recipe_of(options, samples, start.folder)
    training = Training(
        recipe=recipe,
        start=start,
        mixture=mixture,
        augment=augment_of(options),
        looping=LoopOptions(options.out, options.every, options.precision, device),
        workers=options.workers,
        recompute=options.recompute,
    )
    one = alone(options.out, say) if rank() == 0 else contextlib.nullcontext()
    with one, progress(f"train {options.kind}", recipe.optim.steps, unit="step") as told:
        return trained(training, hear_metrics(told))


def _start(like: str | None, init: str | None) -> tuple[str, bool]:
    if (like is None) == (init is None):
        raise InputError(
            "give --like CHECKPOINT (fresh weights of its architecture) or --init MODEL (go on "
            "from its weights), one of the two"
        )
    return (like, True) if like is not None else (str(init), False)


def _own(devices: tuple[str, ...]) -> str:
    """Return the device of this process: torchrun numbers the processes of a machine."""
    return devices[local_rank() % len(devices)]
