"""Everything that can be checked before any work, and the digests of what the user gave."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capfilt.commands.advance import check_run
from capfilt.commands.hardware import Hardware
from capfilt.engine.machine import choose_devices
from capfilt.errors import InputError, ModelError
from capfilt.evaluate.pairs import load_pairs
from capfilt.inputs import InputSpec, open_input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory
from capfilt.ledger.source import SourceManifest, peek
from capfilt.progress import unsaid
from capfilt.rounds.config import Rounds
from capfilt.rounds.steps import RUN, Facts, RoundsFolder, Step, steps_of
from capfilt.train.data.index import open_stream
from capfilt.train.options import check_fits, config_of
from capfilt.train.plan import PairFolder, mixture
from capfilt.train.start import start_of


@dataclass(frozen=True, slots=True)
class RoundsRequest:
    """What the user gave besides the recipes."""

    spec: InputSpec
    out: Path
    held_out: str | None = None
    workers: int | None = None
    device: str = "auto"
    processes: int | None = None  # of a training; None: one a device
    engine: Literal["local", "ray"] = "local"  # of the cleanings

    @property
    def hardware(self) -> Hardware:
        """What a cleaning may use."""
        return Hardware(self.workers, self.device, self.engine)


@dataclass(frozen=True, slots=True)
class CheckedRounds:
    """A loop that can begin: its steps, and what was found on the way."""

    rounds: Rounds
    place: RoundsFolder
    steps: tuple[Step, ...]
    spec: InputSpec
    hardware: Hardware  # of the cleanings
    held_out: str | None
    manifest: SourceManifest
    human_samples: int
    start: Path
    devices: tuple[str, ...]
    processes: int


def check(rounds: Rounds, given: RoundsRequest) -> CheckedRounds:
    """Check a loop; writes nothing.

    Raises:
        InputError: something that the user gave cannot be used, or the folder holds other rounds.
        DamageError: a file of the human pairs, or of the folder, cannot be read.
    """
    if given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is a file; give a folder")
    check_run(rounds.first, given.out / RUN, given.hardware, unsaid)
    if not rounds.human:
        raise InputError("give --human DIR: captioner and filter are fine-tuned on human pairs")
    root = given.out.resolve()
    samples, human = _human(rounds)
    folder, digest = _start(rounds)
    devices = choose_devices(given.device)
    processes = _processes(given, devices)
    _check_trainings(rounds, samples, folder, processes)
    held_out = None if given.held_out is None else _held_out(given.held_out)
    ledger, shard_rows = Ledger(root / RUN), rounds.first.shard_rows
    manifest = peek(open_input(given.spec, Memory(ledger, shard_rows)), ledger, shard_rows)
    place = RoundsFolder(root)
    steps = tuple(steps_of(rounds, Facts(manifest.id, digest, human, held_out)))
    place.check(steps)
    return CheckedRounds(
        rounds,
        place,
        steps,
        given.spec,
        given.hardware,
        given.held_out,
        manifest,
        samples,
        folder,
        devices,
        processes,
    )


def _human(rounds: Rounds) -> tuple[int, tuple[str, ...]]:
    """Return how many human samples there are, and the digest of each folder."""
    mixture(rounds.pretraining_data("the web's pairs"))  # weights that do not fit together
    samples, digests = 0, []
    for stream in mixture(rounds.human).streams:
        index = open_stream(stream)
        samples += int(index.samples.sum())
        digests.append(index.digest)
    return samples, tuple(digests)


def _start(rounds: Rounds) -> tuple[Path, str]:
    """Return the folder of the checkpoint that pre-trainings begin with, and its digest."""
    name, fresh = rounds.start
    start = start_of(name, fresh=fresh)
    kind = config_of(start.folder).get("model_type")
    if kind != "blip":
        raise ModelError(f"{name!r} is a {kind}; new models are built like a BLIP")
    return start.folder, f"{start.digest}{'' if fresh else ' with its weights'}"


def _processes(given: RoundsRequest, devices: tuple[str, ...]) -> int:
    if given.processes is not None and given.processes < 1:
        raise InputError(f"{given.processes} processes; give at least 1")
    return given.processes or len(devices)


def _check_trainings(rounds: Rounds, samples: int, start: Path, processes: int) -> None:
    """Raise what a training would raise of its figures."""
    for plan in rounds.trainings:
        recipe = plan.recipe_for(samples, start)
        recipe.optim.micro_batch(processes)
        check_fits(recipe, config_of(start))


def _held_out(source: str) -> str:
    """Return a digest of held-out pairs."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise InputError("--held-out needs CIDEr and BLEU: pip install 'capfilt[evaluate]'")
    pairs = load_pairs(source)
    found = hashlib.sha256(json.dumps(pairs.texts).encode())
    for image in pairs.images:
        found.update(hashlib.sha256(image).digest())
    return found.hexdigest()[:32]


def samples_of(folder: PairFolder) -> int:
    """Return how many samples a folder has."""
    (stream,) = mixture((PairFolder(folder.folder),)).streams
    return int(open_stream(stream).samples.sum())
