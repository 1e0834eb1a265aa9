"""The training loop: steps, checkpoints, and a resume that computes what no kill would have.

A checkpoint holds model, momentum copy, queues, optimiser, and the reader's cursor; everything that
is drawn is a function of seed and step. So a run that is killed and begun again has, on a CPU at
fp32, the same weights bit for bit. Checkpoints are published whole and never changed; the newest
two are kept.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, Final

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from capfilt.errors import DamageError, InputError
from capfilt.ledger.publish import Publisher
from capfilt.models.recipe import TrainingPrecision
from capfilt.train.data.batch import Batch
from capfilt.train.data.randomness import rng_of
from capfilt.train.data.reader import Cursor, Reader
from capfilt.train.jobs import At, Job

_KEPT: Final = 2
_METRICS: Final = "metrics.jsonl"
ReaderAt = Callable[[Cursor | None], Reader]
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How a training is run; nothing here changes what comes out, but for `precision`."""

    folder: Path
    every: int = 500  # steps from one checkpoint to the next
    precision: TrainingPrecision = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the range."""
        if self.every < 1:
            raise InputError(f"a checkpoint every {self.every} steps; give at least 1")


@dataclass(frozen=True, slots=True)
class Optimised:
    """Metrics of all steps, and how often this process met a row that gave no sample, by reason."""

    metrics: list[Metrics]
    skipped: dict[str, int]


def optimise(
    job: Job, reader_at: ReaderAt, how: LoopOptions, identity: str, told: Callable[[Metrics], None]
) -> Optimised:
    """Train `job` to the end of its recipe, from its newest checkpoint.

    Args:
        job: on the device of `how`.
        reader_at: opens the data at a cursor, or at the beginning.
        how: where and how.
        identity: digest of all that the result depends on; a checkpoint of another is refused.
        told: hears the metrics of each step, those before a resume not.

    Raises:
        InputError: the folder holds another training, or one of another number of processes.
        DamageError: a checkpoint cannot be read.
    """
    optim = job.recipe.optim
    optimizer = optimizer_of(job)
    metrics, cursor, skipped = _resumed(job, optimizer, how, identity)
    rank, world = _place()
    reader = reader_at(cursor)
    reader.skipped.update(skipped)
    model = _parallel(job, how.device)
    # Losses that gather over processes need as many samples of each.
    parts = _usable(reader, optim.micro_batch(world) if world > 1 else None)
    for step in range(len(metrics), optim.steps):
        metrics.append(take_step(job, model, optimizer, parts, At(step, 0, rank), how))
        told(metrics[-1])
        if rank == 0 and ((step + 1) % how.every == 0 or step + 1 == optim.steps):
            _keep(job, optimizer, reader, metrics, how.folder, identity)
    return Optimised(metrics, dict(sorted(reader.skipped.items())))


def _usable(reader: Reader, size: int | None) -> Iterator[Batch]:
    """Yield the batches that have samples, filled up to `size` where one is given.

    Raises:
        InputError: no row of a whole epoch gives a sample.
        DamageError: a batch that must have a size has none to fill it with.
    """
    lost = 0  # rows since the last sample
    for batch in reader:
        lost = 0 if len(batch) else lost + len(batch.skipped)
        if lost >= reader.epoch_samples:
            raise InputError(f"no row of the data can be trained on: {_reasons(reader.skipped)}")
        if size is not None and not len(batch):
            raise DamageError(
                f"none of {len(batch.skipped)} rows of a batch can be trained on "
                f"({batch.skipped[0].reason}, …), and processes need as many samples of each; "
                "take larger batches, or the rows out of the data"
            )
        if len(batch):
            yield batch if size is None else batch.padded(size)


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def optimizer_of(job: Job) -> torch.optim.Optimizer:
    """Return AdamW over what a job trains."""
    optim = job.recipe.optim
    groups = _groups(job, optim.weight_decay)
    # Fused: one pass over the parameters, which weighs at small batches on a CPU.
    return torch.optim.AdamW(groups, lr=optim.peak_lr, betas=optim.betas, fused=True)


def take_step(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Iterator[Batch],
    at: At,
    how: LoopOptions,
) -> Metrics:
    """Take one step of the optimiser; `model` is the job or what wraps it. Returns its metrics.

    Raises:
        DamageError: a loss is not finite.
    """
    optim = job.recipe.optim
    rate = optim.learning_rate(at.step)
    _set_rate(optimizer, rate)
    job.before_step()
    found = _step(job, model, parts, at, how)
    norm = _stepped(optimizer, job, optim.clip)
    return {"step": at.step + 1, "lr": rate, "norm": norm, **found}


def _step(job: Job, model: nn.Module, parts: Iterator[Batch], at: At, how: LoopOptions) -> Metrics:
    """Accumulate the gradients of one step; returns the mean losses."""
    count, found = job.recipe.optim.accumulate, Metrics()
    for part in range(count):
        here = At(at.step, part, at.rank)
        # Dropout, where a configuration has some, draws from torch's own generator.
        torch.manual_seed(rng_of("dropout", job.recipe.seed, *_numbers(here)).getrandbits(63))
        with torch.autocast(how.device.partition(":")[0], torch.bfloat16, how.precision == "bf16"):
            losses = model(next(parts), here)
            each = torch.stack([loss.float() for loss in losses.values()])
            total = each.sum()
        (total / count).backward()  # type: ignore[no-untyped-call]  # torch declares it so
        for name, loss in zip(losses, each.tolist(), strict=True):
            found[name] = found.get(name, 0.0) + loss / count
    if not all(map(_finite, found.values())):
        raise DamageError(f"step {at.step + 1}: the loss is {found}; take a lower rate, or fp32")
    return {"loss": sum(found.values()), **found}


def _stepped(optimizer: torch.optim.Optimizer, job: Job, clip: float | None) -> float:
    norm = nn.utils.clip_grad_norm_(job.trained, clip if clip is not None else float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def _numbers(at: At) -> tuple[int, int, int]:
    return at.step, at.part, at.rank


def _finite(value: float) -> bool:
    return value - value == 0.0


def _groups(job: Job, decay: float) -> list[dict[str, Any]]:  # torch's own form
    """Return parameter groups: biases and norms are not decayed (BLIP's optimiser)."""
    trained = job.trained
    wide = [parameter for parameter in trained if parameter.ndim > 1]
    thin = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": wide, "weight_decay": decay}, {"params": thin, "weight_decay": 0.0}]


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _place() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _parallel(job: Job, device: str) -> nn.Module:
    if _place()[1] == 1:
        return job
    ids = None if device == "cpu" else [torch.device(device).index]
    # A captioner leaves the filter's weights without gradients, and the other way round.
    return DistributedDataParallel(job, device_ids=ids, find_unused_parameters=True)


def _keep(
    job: Job,
    optimizer: torch.optim.Optimizer,
    reader: Reader,
    metrics: list[Metrics],
    folder: Path,
    identity: str,
) -> None:
    """Publish a checkpoint, remove the ones before the last, and write the metrics so far."""
    state = {
        "identity": identity,
        "processes": _place()[1],
        "job": job.state_dict(),
        "optimizer": optimizer.state_dict(),
        "cursor": asdict(reader.cursor()),
        "skipped": dict(reader.skipped),
        "metrics": metrics,
    }

    def write(out: BinaryIO) -> None:
        torch.save(state, out)

    Publisher(folder).publish(f"checkpoints/step-{len(metrics):09d}.pt", write)
    for old in _checkpoints(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    _write_metrics(folder, metrics)


def _write_metrics(folder: Path, metrics: list[Metrics]) -> None:
    """Write all metrics, a JSON line a step. Each checkpoint has its own, so this is for people."""
    draft = folder / f".{_METRICS}.tmp"
    draft.write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    draft.replace(folder / _METRICS)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*.pt"))


def _resumed(
    job: Job, optimizer: torch.optim.Optimizer, how: LoopOptions, identity: str
) -> tuple[list[Metrics], Cursor | None, dict[str, int]]:
    """Load the newest checkpoint, if there is one; returns metrics, cursor and skipped rows."""
    found = _checkpoints(how.folder)
    if not found:
        return [], None, {}
    try:
        state = torch.load(found[-1], map_location=how.device, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        why = str(error).partition("\n")[0]  # torch goes on about how to load it all the same
        raise DamageError(f"{found[-1]} cannot be read ({why}); remove it") from error
    if state["identity"] != identity:
        raise InputError(
            f"{how.folder} holds another training (other recipe, data or start); "
            "give another folder, or remove it"
        )
    count = _place()[1]
    if state.get("processes", count) != count:
        raise InputError(
            f"{how.folder} was begun by {state['processes']} processes, and now there are {count}: "
            "hard negatives are drawn within a process, so that it would be another training; "
            "start as many, or give another folder"
        )
    job.load_state_dict(state["job"])
    optimizer.load_state_dict(state["optimizer"])
    return state["metrics"], Cursor(**state["cursor"]), state.get("skipped", {})
