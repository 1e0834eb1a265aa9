"""The cases of `python -m tests.benchmarks`: each measures one thing and returns its lines."""

import functools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from capfilt import schema
from capfilt.commands.hardware import Hardware
from capfilt.commands.run import run as run_round
from capfilt.engine import passes as engine
from capfilt.engine.finish import finish
from capfilt.engine.passes import Resources
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.record import latest_round, plan_round
from capfilt.engine.worker import PassJob
from capfilt.inputs import InputSpec, open_input
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.source import SourceManifest, cut
from capfilt.progress import show_progress
from capfilt.recipe.options import RoundOptions, build_round
from capfilt.recipe.round import Round
from capfilt.stages.policies.blip import Select
from tests.benchmarks import synthetic
from tests.benchmarks.lines import Line

_REPEATS: Final = 3
_SELECT_SLICE: Final = 10_000
_SHARD_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each case works on."""

    rows: int = 3000  # of the simulated web
    shards: int = 10_000  # finished, of a resume check
    selected: int = 1_000_000  # rows that the policy decides
    small: int = 10_000  # rows of the smaller run whose memory is looked at
    large: int = 200_000
    pictures: int = 512  # that the reader reads
    steps: int = 3  # of a training of BLIP-base, after one that warms up
    batch: int = 4  # pairs of a step of BLIP-base; the embedded models have 16 times as many
    layers: int = 12  # of BLIP-base's towers, in training; fewer to try the benchmark out


_QUIET: Final = functools.partial(show_progress, quiet=True)


def stages(sizes: Sizes) -> list[Line]:
    """Rows a second of every stage of a real round over the simulated web, one worker."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.perf_counter()
        _round_of_the_web(sizes.rows, run)
        wall = time.perf_counter() - began
        ledger = Ledger(run)
        lines = []
        for stage in ledger.stages():
            receipts = [ledger.receipt(stage, shard) for shard in sorted(ledger.shards(stage))]
            seconds = sum(receipt.seconds for receipt in receipts)
            rows = sum(receipt.rows for receipt in receipts)
            name = stage.rpartition("-")[0]
            if seconds:  # the input is cut as it is read, and says no time
                lines.append(Line(f"stage {name}", rows / seconds, "rows/s", note="one worker"))
        lines.append(Line("whole round", sizes.rows / wall, "rows/s", note=f"{wall:.0f} s"))
        return [*_cut_and_export(sizes.rows), *lines]


def _round_of_the_web(rows: int, run: Path) -> None:
    from capfilt.simweb.server import WebServer
    from capfilt.simweb.web import SimulatedWeb, write_web

    with WebServer(web=SimulatedWeb(seed=3)) as server:
        files = write_web(run.with_name("web"), rows, 3, server.base_url)
        options = RoundOptions(
            allow_private_hosts=True,
            host_requests=32,
            shard_rows=250,
            timeout=2.0,
            total_timeout=4.0,
        )
        spec, hardware = InputSpec((str(files.urls),)), Hardware(workers=1, device="cpu")
        run_round(spec, options, run, hardware, _QUIET, lambda _: None)


def _cut_and_export(rows: int) -> list[Line]:
    """Rows a second of reading and cutting a list, and of writing the dataset."""
    count = max(rows, 20 * rows)
    with tempfile.TemporaryDirectory() as folder:
        root, recipe = Path(folder), _recipe()
        synthetic.write_urls(root / "urls.parquet", count)
        ledger = Ledger(root / "run")
        began = time.perf_counter()
        manifest = cut(open_input(InputSpec((str(root / "urls.parquet"),))), ledger, _SHARD_ROWS)
        cutting = time.perf_counter() - began
        plan = plan_round(recipe, manifest, ledger)
        synthetic.publish(ledger, plan, _keys_of(RunReader(ledger, plan)))
        engine.advance(plan, ledger, Resources(), _QUIET)
        began = time.perf_counter()
        done = finish(RunReader(ledger, plan), recipe, manifest, None, _QUIET, lambda _: None)
        exporting = time.perf_counter() - began
    return [
        Line("source: read and cut", count / cutting, "rows/s", note="Parquet, one process"),
        Line("export", done.rows / exporting, "pairs/s", note="small pictures, with the report"),
    ]


def overhead(sizes: Sizes) -> list[Line]:
    """Time of a stage in the ledger over the time of its bare function on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        _round_of_the_web(min(sizes.rows, 1000), run)
        recorded, manifest = latest_round(Ledger(run))
        plan = plan_round(recorded.round, manifest, Ledger(run))
        return [_overhead_of(name, plan, Ledger(run)) for name in ("phash", "caption", "match_web")]


def _overhead_of(name: str, plan: Plan, ledger: Ledger) -> Line:
    planned: Any = plan.named(name)  # of these stages
    stage, reader = planned.stage, RunReader(ledger, plan)
    ratios = []
    with stage.open() as transform:
        slices = [
            batch
            for shard in plan.shards
            for batch in _in_calls(reader.read(shard, stage.needs), stage.rows_per_call)
        ]
        transform(slices[0])  # warms up
        for _ in range(_REPEATS):
            _forget()
            began = time.perf_counter()
            for batch in slices:
                transform(batch)
            bare = time.perf_counter() - began
            _forget()
            for shard in plan.shards:
                ledger.path(planned.id, shard).unlink()
            began = time.perf_counter()
            job = PassJob(str(ledger.root), plan, (planned,))
            with job.open(0, lambda _: None) as advance:
                for shard in plan.shards:
                    advance(shard)
            ratios.append((time.perf_counter() - began) / bare)
    note = "opening the stage, reading and publishing included"
    return Line(f"ledger over bare {name}", statistics.median(ratios), "x", note=note)


def _in_calls(data: pa.Table, rows: int | None) -> list[pa.RecordBatch]:
    step = rows or max(1, data.num_rows)
    starts = range(0, data.num_rows, step)
    return [data.slice(start, step).combine_chunks().to_batches()[0] for start in starts]


def _forget() -> None:
    """Empty the memo of decoded pictures, which would make a second pass cheaper."""


def checksums(sizes: Sizes) -> list[Line]:
    """Passes over a finished run with every file checked, over the same without any check."""
    from tests.benchmarks.checksums import lines_of

    with tempfile.TemporaryDirectory() as folder:
        began, rows = time.process_time(), min(sizes.rows, 1000)
        _round_of_the_web(rows, Path(folder) / "web" / "run")
        per_row = (time.process_time() - began) / rows
        root, recipe = Path(folder), _recipe()
        ledger, plan, _ = _made_up(root, recipe, sizes.small)
        engine.advance(plan, ledger, Resources(), _QUIET)
        return lines_of(ledger, plan, recipe, per_row)


def _made_up(root: Path, recipe: Round, rows: int) -> tuple[Ledger, Plan, SourceManifest]:
    """Cut a list of so many rows, and publish made-up columns of the stages before dedup."""
    synthetic.write_urls(root / "urls.parquet", rows)
    ledger = Ledger(root / "run")
    manifest = cut(open_input(InputSpec((str(root / "urls.parquet"),))), ledger, _SHARD_ROWS)
    plan = plan_round(recipe, manifest, ledger)
    synthetic.publish(ledger, plan, _keys_of(RunReader(ledger, plan)))
    return ledger, plan, manifest


def resume(sizes: Sizes) -> list[Line]:
    """Find that nothing is missing of a round whose every shard is finished."""
    with tempfile.TemporaryDirectory() as folder:
        root, recipe = Path(folder), _recipe()
        synthetic.write_urls(root / "urls.parquet", sizes.shards)
        ledger = Ledger(root / "run")
        data = open_input(InputSpec((str(root / "urls.parquet"),)))
        manifest = cut(data, ledger, 1)
        plan = plan_round(recipe, manifest, ledger)
        for planned in plan.stages:
            empty = planned.stage.adds.empty_table()
            for shard in plan.shards:
                ledger.commit(Receipt(planned.id, shard, 0), empty)
        times = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            fresh = plan_round(recipe, manifest, Ledger(root / "run"))
            left = sum(len(fresh.missing(ledger, planned)) for planned in fresh.stages)
            times.append(time.perf_counter() - began)
        if left:
            raise RuntimeError(f"{left} shards are missing of a finished round")
    note = f"{len(plan.stages)} stages of {sizes.shards:,} shards"
    return [Line("resume check", statistics.median(times), "s", "< 2 s", note)]


def select(sizes: Sizes) -> list[Line]:
    """Rows a second that the policy decides, on one core."""
    return [_select_of(captions, sizes.selected) for captions in (1, 4)]


def _select_of(captions: int, rows: int) -> Line:
    stage, rng = Select(), np.random.default_rng(0)
    batch = _scored(rng, _SELECT_SLICE, captions).select(list(stage.needs))
    times = []
    with stage.open() as transform:
        transform(batch)
        for _ in range(_REPEATS):
            began = time.perf_counter()
            for _ in range(max(1, rows // _SELECT_SLICE)):
                transform(batch)
            times.append(time.perf_counter() - began)
    decided = max(1, rows // _SELECT_SLICE) * _SELECT_SLICE
    rate = decided / statistics.median(times)
    return Line(f"select, {captions} + 1 texts a row", rate, "rows/s", ">= 1,000,000", "one core")


def _scored(rng: np.random.Generator, rows: int, captions: int) -> pa.RecordBatch:
    texts = [f"a caption of row {n}, which says something" for n in range(rows)]
    own = [[f"{text} {k}" for k in range(captions)] for text in texts]
    scores = rng.random((rows, captions), np.float32)
    nothing = pa.nulls(rows, pa.string())
    return pa.record_batch(
        {
            "source_status": ["ok"] * rows,
            "status": [schema.SUCCESS] * rows,
            "caption": texts,
            "captions": pa.array(own, pa.list_(pa.string())),
            "caption_error": nothing,
            "match_error": nothing,
            "itm_score": rng.random(rows, np.float32),
            "caption_itm_scores": pa.array(list(scores), pa.list_(pa.float32())),
            "dup_of": nothing,
        }
    )


def memory_small(sizes: Sizes) -> list[Line]:
    """Peak memory of a round of a few rows, from the dedup barrier to the report."""
    return _memory(sizes.small)


def memory_large(sizes: Sizes) -> list[Line]:
    """Peak memory of a round of many rows."""
    return _memory(sizes.large)


def _memory(rows: int) -> list[Line]:
    """Cut, dedup, select and export `rows` rows; what the models add is one slice, always."""
    with tempfile.TemporaryDirectory() as folder:
        root, recipe = Path(folder), _recipe()
        synthetic.write_urls(root / "urls.parquet", rows)
        ledger = Ledger(root / "run")
        manifest = cut(open_input(InputSpec((str(root / "urls.parquet"),))), ledger, _SHARD_ROWS)
        after_cut = _peak_mb()
        plan = plan_round(recipe, manifest, ledger)
        _in_a_child(lambda: synthetic.publish(ledger, plan, _keys_of(RunReader(ledger, plan))))
        engine.advance(plan, ledger, Resources(), _QUIET)
        after_policy = _peak_mb()
        finish(RunReader(ledger, plan), recipe, manifest, None, _QUIET, lambda _: None)
    name = f"peak memory, {rows:,} rows"
    note = "the barrier holds some 250 bytes a row; embeddings lie in a file"
    return [
        Line(f"{name}: source", after_cut, "MB", "flat"),
        Line(f"{name}: and dedup, select", after_policy, "MB", "", note),
        Line(f"{name}: and export, report", _peak_mb(), "MB", "no more"),
    ]


def _in_a_child(work: Callable[[], None]) -> None:
    """Do something in a process of its own, whose memory is not counted."""
    import os

    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if ended:
        raise RuntimeError("the made-up columns could not be written")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _keys_of(reader: RunReader) -> Callable[[str], list[str]]:
    return lambda shard: reader.read(shard, ["key"])["key"].to_pylist()


def _recipe() -> Round:
    return build_round(RoundOptions(allow_private_hosts=True, shard_rows=_SHARD_ROWS))


def reader(sizes: Sizes) -> list[Line]:
    """Samples a second that the training's reader gives, against what the bare step takes."""
    from tests.benchmarks.training import contests, reader_lines

    return reader_lines(sizes.pictures, contests(sizes.steps, sizes.batch, sizes.layers))


def training(sizes: Sizes) -> list[Line]:
    """Samples a second of a training step, against transformers' BLIP with LM alone."""
    from tests.benchmarks.training import contests, step_lines

    return step_lines(contests(sizes.steps, sizes.batch, sizes.layers))


def resizer(sizes: Sizes) -> list[Line]:
    """Pictures a second that the download decodes, scales and encodes, against img2dataset's."""
    from tests.benchmarks.pictures import resizer_lines

    return resizer_lines(sizes.pictures)


CASES: Final[Sequence[Callable[[Sizes], list[Line]]]] = (
    stages,
    overhead,
    checksums,
    resume,
    select,
    memory_small,
    memory_large,
    reader,
    training,
    resizer,
)
