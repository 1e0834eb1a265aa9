"""One training from start to folder: open data and model, optimise, publish what it is for."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoConfig, AutoTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from capfilt.errors import InputError, ModelError
from capfilt.fingerprint import fingerprint
from capfilt.ledger.publish import Publisher, explained
from capfilt.train.data.augment import Augment
from capfilt.train.data.mixture import Mixture
from capfilt.train.data.reader import Cursor, Reader, ReaderOptions
from capfilt.train.jobs import Job, Recipe, save_results
from capfilt.train.loop import LoopOptions, Metrics, Optimised, optimise
from capfilt.train.model.med import Med
from capfilt.train.options import check_fits
from capfilt.train.plot import loss_plot
from capfilt.train.ranks import rank, world_size
from capfilt.train.recipe import Itc
from capfilt.train.start import Start, roles_of
from capfilt.wording import counted

RESULT = "model"


@dataclass(frozen=True, slots=True)
class Training:
    """A whole training; `identity` is a digest of all that its result depends on."""

    recipe: Recipe
    start: Start
    mixture: Mixture
    augment: Augment | None = None
    window: int = 4096
    looping: LoopOptions = LoopOptions(Path("runs/train"))
    workers: int = 0
    recompute: bool = False

    def identity(self, order: str) -> str:
        """Return the digest, over data read in an `order` (`Cursor.order`).

        Where files lie, and how many workers read them, is not in it.
        """
        start = (self.start.fresh, self.start.digest)
        kind = type(self.recipe).__name__
        return fingerprint((kind, self.recipe, start, self.augment, self.looping.precision, order))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left."""

    folder: Path
    steps: int
    first: Metrics
    last: Metrics
    skipped: dict[str, int] = field(default_factory=dict)  # rows without a sample, by reason

    def text(self) -> str:
        """Return what a person reads at the end."""
        losses = ", ".join(
            f"{name} {self.first[name]:.3f} to {self.last[name]:.3f}"
            for name in self.last
            if name not in {"step", "lr", "norm"} and name in self.first
        )
        lost = ", ".join(f"{count:,} × {reason}" for reason, count in self.skipped.items())
        left_out = f"\nrows left out, each time they came: {lost}" if lost else ""
        return f"{counted(self.steps, 'step')}, {losses}{left_out}\nmodels: {self.folder / RESULT}"

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        told = asdict(self)
        return {**told, "folder": str(self.folder), "models": str(self.folder / RESULT)}


def train(training: Training, told: Callable[[Metrics], None]) -> Trained:
    """Run a training, or go on with it, or find that it is done.

    Raises:
        InputError: data or options that cannot be used, or the folder of another training.
        ModelError: a start that is no BLIP.
        StorageError: the folder cannot be written.
    """
    how, reader_at = training.looping, _reader_at(training)
    identity = training.identity(reader_at(None).cursor().order)
    done = _finished(how.folder, identity)
    if done is not None:
        return done
    with _processes(how.device):
        job = _job(training)
        found = optimise(job, reader_at, how, identity, told)
        if rank() == 0:
            _publish(training, job, found, identity)
    metrics = found.metrics
    return Trained(how.folder, len(metrics), metrics[0], metrics[-1], found.skipped)


def _finished(folder: Path, identity: str) -> Trained | None:
    file = folder / RESULT / "training.json"
    if not file.exists():
        return None
    plain = json.loads(file.read_text(encoding="utf-8"))
    if plain["identity"] != identity:
        raise InputError(
            f"{folder} holds another training (other recipe, data or start); "
            "give another folder, or remove it"
        )
    told = (plain["steps"], plain["first"], plain["last"], plain.get("skipped", {}))
    return Trained(folder, *told)


@contextlib.contextmanager
def _processes(device: str) -> Iterator[None]:
    """Join the other processes where torchrun started several."""
    if world_size() == 1:
        yield
        return
    distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _job(training: Training) -> Job:
    how, start = training.looping, training.start
    if how.device == "cpu":
        # One result whatever the machine: sums of several threads differ in their last bits.
        torch.set_num_threads(1)
    med = _med(start, training.recipe)
    check_fits(training.recipe, med.config.to_dict())
    itc: Itc | None = getattr(training.recipe, "itc", None)
    if itc is not None and (start.fresh or not (start.folder / "med").is_dir()):
        med.temperature.data.fill_(itc.temperature)  # only a MED has one that was learnt
    if training.recipe.side != med.config.vision_config.image_size:
        med.resize(training.recipe.side)
    med.recompute = training.recompute
    tokenizer = AutoTokenizer.from_pretrained(_vocabulary(start.folder), local_files_only=True)
    return Job(med, tokenizer, training.recipe).to(how.device)


def _med(start: Start, recipe: Recipe) -> Med:
    folder = start.folder
    if start.fresh:
        config = AutoConfig.from_pretrained(_vocabulary(folder), local_files_only=True)
        if config.model_type != "blip":
            raise ModelError(f"{folder} is a {config.model_type}; MED is built like a BLIP")
        config.vision_config.image_size = recipe.side
        return Med.new(config, recipe.seed)
    if (folder / "med").is_dir():
        return Med.load(folder / "med")
    roles = roles_of(folder)
    return Med.from_folders(roles.get("captioner"), roles.get("matcher"), seed=recipe.seed)


def _vocabulary(folder: Path) -> Path:
    """Return the folder of the tokenizer: a checkpoint's own, or that of one beside it."""
    for name in (".", "med", "captioner", "matcher"):
        if (folder / name / "tokenizer_config.json").exists():
            return folder / name
    raise ModelError(
        f"{folder} has no tokenizer_config.json; a checkpoint has one beside its weights"
    )


def _reader_at(training: Training) -> Callable[[Cursor | None], Reader]:
    optim, recipe = training.recipe.optim, training.recipe
    if optim.batch_size % optim.accumulate:
        raise InputError(f"a batch of {optim.batch_size} in {optim.accumulate} parts is not whole")
    reading = ReaderOptions(
        batch_size=optim.batch_size // optim.accumulate,
        side=recipe.side,
        seed=recipe.seed,
        augment=training.augment,
        window=training.window,
        workers=training.workers,
        captions=getattr(recipe, "captions_per_image", 1),
    )
    return lambda cursor: Reader(training.mixture, reading, rank(), world_size(), cursor)


def _publish(training: Training, job: Job, found: Optimised, identity: str) -> None:
    """Put the models, their vocabulary and the record of the training into their place, whole."""
    folder, metrics = training.looping.folder, found.metrics
    tokenizer = AutoTokenizer.from_pretrained(
        _vocabulary(training.start.folder), local_files_only=True
    )
    side = training.recipe.side

    def processors(own: Path) -> None:
        tokenizer.save_pretrained(own)
        BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(own)

    with Publisher(folder).scratch_dir() as scratch:
        save_results(job, scratch, processors)
        (scratch / "loss.svg").write_text(loss_plot(metrics), encoding="utf-8")
        record = {
            "identity": identity,
            "recipe": {type(training.recipe).__name__: asdict(training.recipe)},
            "steps": len(metrics),
            "first": metrics[0],
            "last": metrics[-1],
            "skipped": found.skipped,
        }
        (scratch / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        with explained(folder / RESULT):
            if not (folder / RESULT).exists():
                scratch.rename(folder / RESULT)
