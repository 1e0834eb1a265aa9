"""The experiment as tasks: what each needs, what it does, and its record once it is done.

A record is `DIR/tasks/NAME.json`, published whole; a task with a record is never done again. What a
task does is resumable itself: trainings have checkpoints, cleanings the ledger.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capfilt.ledger.publish import Publisher
from capfilt.progress import Progress
from pipelines.experiments.proof import judging, trainings, world
from pipelines.experiments.proof.design import ARMS, BOTH, CLEANINGS, RAW, Arm, Cleaning, Design
from pipelines.experiments.start import small_start

Record = dict[str, Any]  # JSON


@dataclass(frozen=True, slots=True)
class Lab:
    """The folder of one experiment, and its design."""

    root: Path
    design: Design
    progress: Progress

    def record(self, task: str) -> Record | None:
        """Return what a task left, or None."""
        file = self.root / "tasks" / f"{task}.json"
        if not file.exists():
            return None
        record: Record = json.loads(file.read_text(encoding="utf-8"))
        return record

    def models(self, task: str) -> Path:
        """Return the models that a training task left."""
        return self.root / "trainings" / task / "model"


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do; `needs` are the tasks that must be done before."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[Lab], Record]

    def run(self, lab: Lab) -> None:
        """Do it and publish its record."""
        record = self.work(lab)
        told = json.dumps(record, indent=1).encode()
        Publisher(lab.root).publish_bytes(f"tasks/{self.name}.json", told)


def all_tasks(design: Design) -> list[Task]:
    """Return every task, each after those that it needs; the first that can run goes first."""
    tasks = [
        Task("pairs", (), _write),
        Task("download", (), _download),
        Task("start", (), _begin),
    ]
    pretrained = [_pretraining(arm, seed) for seed in range(design.seeds) for arm in ARMS]
    tuned = [task for source in (RAW, BOTH) for task in _fine_tunings(source)]
    cleaned = [_cleaning(how) for how in CLEANINGS]
    judged = [_judging(arm, seed) for seed in range(design.seeds) for arm in ARMS]
    return _ordered([*tasks, *cleaned, *tuned, *pretrained, *judged])


def training_of(arm: Arm, seed: int) -> str:
    """Return the name of an arm's training."""
    return f"pretrain-{slug(arm.name)}-{seed}"


def judging_of(arm: Arm, seed: int) -> str:
    """Return the name of the task that judges it."""
    return f"judge-{slug(arm.name)}-{seed}"


def slug(name: str) -> str:
    """Return a name that a file can have."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _write(lab: Lab) -> Record:
    world.write_pairs(lab.design, lab.root)
    return {}


def _download(lab: Lab) -> Record:
    export = str(world.download(lab.design, lab.root, lab.progress))
    return {RAW.name: {"export": export, "kept": _kept(lab, export)}}


def _kept(lab: Lab, export: str) -> Record:
    return asdict(judging.kept_texts(lab.root, Path(export), lab.design.seed))


def _begin(lab: Lab) -> Record:
    return {"models": str(small_start(lab.design.start, lab.root / "start", lambda _: None))}


def _pretraining(arm: Arm, seed: int) -> Task:
    name, source = training_of(arm, seed), "download"
    if arm.clean is not None:
        source = f"clean-{arm.clean}"

    def work(lab: Lab) -> Record:
        found = lab.record(source) or {}
        pairs = Path(found[RAW.name if arm.clean is None else arm.name]["export"])
        out = lab.root / "trainings" / name
        start = Path((lab.record("start") or {})["models"])
        trainings.pretrain(lab.design, lab.root, start, pairs, arm.copies, seed, out)
        return {"models": str(out / "model")}

    return Task(name, ("start", "pairs", source), work)


def _fine_tunings(source: Arm) -> list[Task]:
    """Return the tasks that make captioner and filter of an arm's first model, apart or as one."""
    before = training_of(source, 0)

    def tuning(kind: trainings.Kind) -> Task:
        name = _tuned(kind, source.name)

        def work(lab: Lab) -> Record:
            given = lab.design
            steps = given.captioner_steps if kind == "captioner" else given.filter_steps
            out = lab.root / "trainings" / name
            trainings.fine_tune(given, lab.root, kind, lab.models(before), steps, 0, out)
            return {"models": str(out / "model")}

        return Task(name, (before,), work)

    kinds: list[trainings.Kind] = ["captioner", "filter"]
    if source is RAW:
        kinds.append("both")
    return [tuning(kind) for kind in kinds]


def _cleaning(how: Cleaning) -> Task:
    captioner = _tuned("both" if how.shared else "captioner", how.models)
    matcher = _tuned("both" if how.shared else "filter", how.models)

    def work(lab: Lab) -> Record:
        models = lab.models(captioner) / "captioner", lab.models(matcher) / "matcher"
        found = world.clean(lab.design, lab.root, how, models, lab.progress)
        return {arm: {**asdict(one), "kept": _kept(lab, one.export)} for arm, one in found.items()}

    return Task(f"clean-{how.name}", ("download", captioner, matcher), work)


def _judging(arm: Arm, seed: int) -> Task:
    before, name = training_of(arm, seed), judging_of(arm, seed)

    def work(lab: Lab) -> Record:
        given, out = lab.design, lab.root / "trainings" / name
        captioner = trainings.fine_tune(
            given, lab.root, "captioner", lab.models(before), given.judged_steps, seed, out
        )
        return asdict(judging.judged(lab.root, given.seed, lab.models(before), captioner))

    return Task(name, (before,), work)


def _tuned(kind: trainings.Kind, source: str) -> str:
    return f"tune-{kind}-{slug(source)}"


def _ordered(tasks: list[Task]) -> list[Task]:
    """Put each task after those that it needs; otherwise in the order given."""
    placed: dict[str, Task] = {}
    waiting = list(tasks)
    while waiting:
        ready = next(task for task in waiting if all(need in placed for need in task.needs))
        placed[ready.name] = ready
        waiting.remove(ready)
    return list(placed.values())
