"""Running a plan: its passes one after the other, each over the shards that miss something."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from capfilt.engine.busy import told as told_busy
from capfilt.engine.busy import watched
from capfilt.engine.executors import Executor, Processes, Serial
from capfilt.engine.plan import Plan, PlannedStage, RunReader, is_barrier
from capfilt.engine.ranks import rank_order
from capfilt.engine.ray_cluster import RayActors, RayCluster
from capfilt.engine.worker import PassJob, solve_barrier
from capfilt.errors import InputError
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import rows_of
from capfilt.process.rotation import from_own_place
from capfilt.progress import Progress, Say, unsaid
from capfilt.stage import Stage


@dataclass(frozen=True, slots=True)
class Resources:
    """What may be used: processes for models and for the rest, devices, which part of an array.

    `cluster`: processes are actors of it; None: they are this machine's.
    """

    workers: int = 1
    host_workers: int = 1
    devices: tuple[str, ...] = ("cpu",)
    rank: int = 0
    world_size: int = 1
    cluster: RayCluster | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank {self.rank} of {self.world_size}: ranks count from 0")
        if self.workers < 1 or self.host_workers < 1:
            raise InputError(f"{self.workers} workers; give at least 1")

    @property
    def workers_a_machine(self) -> int:
        """How many processes for models share the cores of a machine."""
        return self.workers if self.cluster is None else -(-self.workers // self.cluster.nodes)

    def executor(self, *, models: bool) -> Executor:
        """Return the executor for a pass of models, or for any other pass."""
        count = self.workers if models else self.host_workers
        if self.cluster is not None:
            on_gpu = models and self.devices[0] != "cpu"
            return RayActors(count, min(1.0, self.cluster.gpus / count) if on_gpu else 0.0)
        return Serial() if count == 1 else Processes(count)


def advance(
    plan: Plan, ledger: Ledger, resources: Resources, progress: Progress, say: Say = unsaid
) -> bool:
    """Do what is missing of a plan. Returns whether all of it is done now.

    `say` is told after a pass of models how busy the GPUs were.

    A rank of a job array does its own slice first, then what others have left; see `ranks`.
    """
    reader = RunReader(ledger, plan)
    for stages in plan.passes():
        if is_barrier(stages[0].stage):
            if plan.missing(ledger, stages[0]):
                with progress(stages[0].stage.name, rows_of(plan.shards, ledger)) as told:
                    solve_barrier(reader, stages[0], told)
        else:
            run_pass(plan, ledger, stages, resources, progress, say)
        if any(plan.missing(ledger, planned) for planned in stages):
            return False
    return True


def models_at_work(plan: Plan, ledger: Ledger) -> list[Stage]:
    """Return the stages of models that have work to do."""
    return [
        planned.stage
        for planned in plan.stages
        if not is_barrier(planned.stage)
        and planned.stage.resource == "model"
        and plan.missing(ledger, planned)
    ]


def check_models(stages: Sequence[Stage]) -> None:
    """Load each model once, before the download and not after it.

    Raises:
        ModelError: a checkpoint is incomplete or of the wrong kind.
    """
    with contextlib.ExitStack() as held:  # stages of one model load it once
        for stage in stages:
            held.enter_context(stage.open())


def run_pass(
    plan: Plan,
    ledger: Ledger,
    stages: tuple[PlannedStage, ...],
    resources: Resources,
    progress: Progress,
    say: Say = unsaid,
) -> None:
    """Run one pass over the shards that miss something of it, this rank's own first."""
    missing = missing_of_pass(plan, ledger, stages)
    if resources.world_size > 1:
        mine = rank_order(plan.shards, missing, resources.rank, resources.world_size)
    else:
        mine = from_own_place(missing)
    if not mine:
        return
    label = "+".join(planned.stage.name for planned in stages)
    job = PassJob(str(ledger.root), plan, stages, resources.devices, resources.workers_a_machine)
    models = runs_models(stages)
    devices = resources.devices if models and resources.cluster is None else ()
    with watched(devices) as seen, progress(label, rows_of(mine, ledger)) as told:
        resources.executor(models=models).run(job, mine, told)
    for line in told_busy(label, seen):
        say(line)


def runs_models(stages: Sequence[PlannedStage]) -> bool:
    """Say whether a pass needs a device."""
    return any(not is_barrier(p.stage) and p.stage.resource == "model" for p in stages)


def missing_of_pass(plan: Plan, ledger: Ledger, stages: Sequence[PlannedStage]) -> list[str]:
    """Return the shards that miss at least one of these stages, in order."""
    wanted: set[str] = set()
    for planned in stages:
        wanted.update(plan.missing(ledger, planned))
    return [shard for shard in plan.shards if shard in wanted]
