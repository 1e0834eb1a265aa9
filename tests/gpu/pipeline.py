"""Whole commands: a run over pictures in Parquet, by one and by two processes a device; a training.

The rate is that of the pass of captioner and filter once it is under way: rows published from the
first shards of all workers to the last shard. The busy share is that of the same time.
"""

import io
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from capfilt.engine.busy import SAMPLES_A_SECOND, DeviceUse, watched
from tests.gpu.bench import PROMPT, Bench, Findings

_SHARD: Final = 500
_SIZE: Final = (640, 425)
_STEPS: Final = 6


def ask(bench: Bench, found: Findings) -> None:
    """Run, and train on what the last run exported."""
    pairs = bench.folder / "pairs.parquet"
    _write(pairs, bench.rows)
    _run(bench, found, pairs, "default", 1, None)
    _run(bench, found, pairs, "one", 1, 1)
    _train(bench, found, bench.folder / "run-default-1" / "latest")
    _run(bench, found, pairs, "default", 4, None)


def _write(file: Path, rows: int) -> None:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        pictures = list(pool.map(_picture, range(rows), chunksize=64))
    texts = [f"w{n} w{n + 1} w{n + 2} w{n + 3} w{n + 4}" for n in range(rows)]
    names = [f"https://example.com/{n}.jpg" for n in range(rows)]
    pq.write_table(pa.table({"url": names, "caption": texts, "image": pictures}), file)


def _picture(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 255, (32, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _run(
    bench: Bench, found: Findings, pairs: Path, name: str, captions: int, workers: int | None
) -> None:
    run = bench.folder / f"run-{name}-{captions}"
    command = [sys.executable, "-m", "capfilt", "run", str(pairs), "--run", str(run)]
    for role in ("captioner", "matcher"):
        command += [f"--{role}", str(bench.folder / role)]
    command += ["--prompt", PROMPT, "--num-captions", str(captions), "--device", bench.device]
    command += ["--shard-rows", str(_SHARD), "--threshold", "0", "--precision", "bf16"]
    command += [] if workers is None else ["--workers", str(workers)]
    with watched([bench.device]) as seen:
        told = _called(command)
    label = f"run, K = {captions}, {name} workers"
    if told.returncode:
        found.expect(False, f"{label} ended with {told.returncode}: {_end(told.stderr)}")
        return
    rate, lasted = _rate(run)
    busy = _steady(seen.get(bench.device), lasted)
    itself = [line for line in (told.stdout + told.stderr).splitlines() if " was busy " in line]
    found.figures[f"{name}_k{captions}"] = {"images_s": round(rate, 1), "busy": busy}
    share = "" if busy is None else f", the device busy {busy:.0%} of {lasted:.0f} s"
    found.say(f"  {label}: {rate:,.0f} images/s in the pass of captioner and filter{share}")
    for line in itself:
        found.say(f"    {line}")


def _rate(run: Path) -> tuple[float, float]:
    """Return (rows a second, seconds) from the second published shard to the last one."""
    [stage] = [
        folder for folder in (run / "stages").iterdir() if folder.name.startswith("caption-")
    ]
    moments = sorted(file.stat().st_mtime for file in stage.iterdir())
    if len(moments) < 4:
        return float("nan"), 0.0
    lasted = moments[-1] - moments[1]
    return (len(moments) - 2) * _SHARD / lasted, lasted


def _steady(use: DeviceUse | None, lasted: float) -> float | None:
    """Return the busy share of the last `lasted` seconds in which there was work."""
    if use is None or not any(use.busy):
        return None
    end = max(place for place, percent in enumerate(use.busy) if percent > 0)
    own = use.busy[max(0, end - round(lasted * SAMPLES_A_SECOND)) : end]
    return round(sum(own) / len(own) / 100, 3) if own else None


def _train(bench: Bench, found: Findings, run: Path) -> None:
    """Train a few steps on one process, and by torchrun on two where there are two devices."""
    import torch

    counts = [1, 2] if torch.cuda.device_count() > 1 else [1]
    for processes in counts:
        out = bench.folder / f"trained-{processes}"
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, "-m", *torchrun, "-m", "capfilt", "train", "pretrain"]
        command += [str(run), "--like", "embedded", "--out", str(out), "--steps", str(_STEPS)]
        command += ["--batch-size", str(8 * processes), "--side", "64", "--queue-size", "64"]
        kind = bench.device.partition(":")[0]
        told = _called([*command, "--precision", "bf16", "--device", kind])
        there = (out / "model" / "captioner" / "config.json").exists()
        why = "" if there else f": {_end(told.stderr)}"
        found.expect(
            there, f"torchrun on {processes} device(s): {_STEPS} steps of ITC, ITM, LM{why}"
        )


def _called(command: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return partial(subprocess.run, capture_output=True, text=True, check=False)(
        command, env=environment
    )


def _end(told: str) -> str:
    """Return what a command said of an error, or its last lines."""
    lines = told.splitlines()
    return "\n".join([line for line in lines if line.startswith("capfilt: ")] or lines[-12:])
