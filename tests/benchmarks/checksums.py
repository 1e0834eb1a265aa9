"""What it costs to check every file that is read: the same passes with the checks and without.

Times are CPU seconds of this process, all threads together, so that a busy machine disturbs little.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capfilt import schema
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.status import stage_status
from capfilt.export import Provenance, export_dataset
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.publish import Publisher
from tests.benchmarks.lines import Line
from tests.places import local

_REPEATS: Final = 5
_PICTURES: Final = 500
_PICTURE_BYTES: Final = 30_000  # of a JPEG of 384 px, roughly


class Unchecked(Ledger):
    """A ledger that believes what it reads, as before there were checksums; to compare with."""

    @contextmanager
    def _opened(self, stage: str, shard: str) -> Iterator[tuple[pq.ParquetFile, Receipt]]:
        with pq.ParquetFile(self.path(stage, shard)) as file:
            yield file, Receipt(stage, shard, file.metadata.num_rows)

    def read_receipted(
        self,
        stage: str,
        shard: str,
        columns: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
    ) -> tuple[pa.Table, Receipt]:
        """Read and return; nothing is compared with anything."""
        with self._opened(stage, shard) as (file, receipt):
            return file.read(columns=None if columns is None else list(columns)), receipt


def lines_of(ledger: Ledger, plan: Plan, recipe: Any, per_row: float) -> list[Line]:
    """Compare passes over a finished run.

    `recipe` is its round; `per_row` are the CPU seconds that a row of a whole round takes, with
    models: what checking adds to all passes is told as a share of it.
    """
    ledgers = (ledger, Unchecked(ledger.root))
    rows = sum(ledger.receipt(plan.stages[0].id, shard).rows for shard in plan.shards)
    passes: dict[str, Callable[[Ledger], None]] = {
        "status": lambda chosen: _status(chosen, plan),
        "select": lambda chosen: _select(chosen, plan),
        "export": lambda chosen: _export(chosen, plan, recipe),
    }
    lines: list[Line] = []
    added = 0.0
    for name, work in passes.items():
        checked, unchecked = _seconds(work, ledgers)
        added += max(0.0, checked - unchecked) / rows
        lines.append(Line(f"checked over unchecked {name}", checked / unchecked, "x"))
    checked, unchecked = _seconds(_reading, _pictures(local(ledger.root)))
    added += max(0.0, checked - unchecked) / _PICTURES
    note = f"pictures of {_PICTURE_BYTES:,} bytes"
    lines.append(Line("checked over unchecked reading", checked / unchecked, "x", note=note))
    written, plain = _writing()
    added += max(0.0, written - plain) / _PICTURES
    lines.append(Line("checksums over none when writing", written / plain, "x", note=note))
    note = "of the CPU time of a row of a round with the embedded models"
    return [*lines, Line("all checks", max(100 * added / per_row, 1e-6), "%", "< 3 %", note)]


def _seconds(work: Callable[[Ledger], None], ledgers: Sequence[Ledger]) -> tuple[float, float]:
    """Return the median CPU seconds of a pass with either ledger, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for ledger in ledgers:
        work(ledger)  # warms up
    for _ in range(_REPEATS):
        for ledger, own in zip(ledgers, times, strict=True):
            began = time.process_time()
            work(ledger)
            own.append(time.process_time() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def _status(ledger: Ledger, plan: Plan) -> None:
    for planned in plan.stages:
        stage_status(ledger, plan, planned)


def _select(ledger: Ledger, plan: Plan) -> None:
    stage: Any = plan.stages[-1].stage  # the policy, which is no barrier
    reader = RunReader(ledger, plan)
    with stage.open() as transform:
        for shard in plan.shards:
            transform(reader.read(shard, stage.needs).combine_chunks().to_batches()[0])


def _export(ledger: Ledger, plan: Plan, recipe: Any) -> None:
    nowhere = Provenance("", "", {"select": {"type": "RawWeb"}}, (), ())
    with tempfile.TemporaryDirectory() as folder:
        reader = RunReader(ledger, plan)
        export_dataset(reader, Publisher(Path(folder) / "e"), recipe.export, nowhere)


def _pictures(root: Path) -> tuple[Ledger, Ledger]:
    """Publish a shard of pictures, as large as those of the web, for `_reading`."""
    ledger = Ledger(root / "pictures")
    ledger.commit(Receipt("download-1", "s", _PICTURES), _table())
    return ledger, Unchecked(ledger.root)


def _table() -> pa.Table:
    rng = np.random.default_rng(0)
    images = [rng.bytes(_PICTURE_BYTES) for _ in range(_PICTURES)]
    return pa.table({"image": pa.array(images, schema.DOWNLOAD.field("image").type)})


def _reading(ledger: Ledger) -> None:
    ledger.read("download-1", "s")


def _writing() -> tuple[float, float]:
    """Return the CPU seconds of writing pictures with page checksums, and without."""
    table = _table()

    def write(checksum: bool) -> float:
        began = time.process_time()
        out = pa.BufferOutputStream()
        pq.write_table(table, out, compression="none", write_page_checksum=checksum)
        return time.process_time() - began

    write(True)
    pairs = [(write(True), write(False)) for _ in range(_REPEATS)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
