"""The model path against what people use today: images a second, side by side.

    python -m tests.benchmarks.models [--data-juicer PYTHON]

Every contestant captions the same pictures (K captions of `--steps` new tokens) and scores K + 1
texts an image, on all cores of the machine, laid out as it runs best: ours as one process a core
of one thread, as a round runs it; the others also as one process of all cores, and with several
batch sizes. Of each the best layout counts. The bare matrix rate of the machine is measured in the
same run; two image tower passes at that rate are the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.benchmarks.checkpoints import BASE, LARGE, Architecture, save_pair

_JUICER: Final = Path(__file__).with_name("juicer.py")
_WORDS: Final = 9  # of a text that is matched
_RIVAL_IMAGES: Final = 4  # a core: they take seconds an image, and a full batch is what they need
_RIVAL_REPEATS: Final = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, and on what."""

    architecture: Architecture
    folder: Path
    device: str
    cores: int
    images: int  # a process
    captions: int
    steps: int
    repeats: int
    juicer: str | None


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work. `processes` of `threads` each share the cores."""

    name: str
    kind: str
    precision: str
    processes: int
    threads: int
    batch: int
    captions: int
    part: str = "both"

    @property
    def layout(self) -> str:
        """How it used the machine."""
        return f"{self.processes} x {self.threads} threads, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Timing:
    """What came out: seconds an image (median, over all processes), and the peak memory of one."""

    contestant: Contestant
    seconds: float
    peak_mb: float


def measure(contestant: Contestant, setting: Setting) -> Timing:
    """Run a contestant `repeats` times after a warm-up; all its processes work at once."""
    images = setting.images * (setting.cores // contestant.processes or 1)
    with ExitStack() as held:
        running = [
            held.enter_context(_process(contestant, setting, number, images))
            for number in range(contestant.processes)
        ]
        for process in running:
            _answer(process, "ready")
        rounds = []
        for _ in range(setting.repeats + 1):
            for process in running:
                _say(process, "go\n")
            rounds.append(max(float(_answer(process, "took")) for process in running))
        peaks = [_closed(process) for process in running]
    seconds = statistics.median(rounds[1:]) / (images * contestant.processes)
    return Timing(contestant, seconds, max(peaks))


@contextmanager
def _process(
    contestant: Contestant, setting: Setting, number: int, images: int
) -> Iterator["subprocess.Popen[str]"]:
    command = _command(contestant, setting, number, images)
    environment = {**os.environ, "OMP_NUM_THREADS": str(contestant.threads)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _command(contestant: Contestant, setting: Setting, number: int, images: int) -> list[str]:
    work = json.loads((setting.folder / "work.json").read_text(encoding="utf-8"))
    start = (number * images) % len(work["images"])
    own = {
        "images": (work["images"] * 2)[start : start + images],
        "texts": [texts[: contestant.captions + 1] for texts in work["texts"][:images]],
    }
    if contestant.kind == "juicer":
        return _juicer_command(contestant, setting, number, own)
    task = {
        **own,
        "folder": str(setting.folder),
        "captions": contestant.captions,
        "steps": setting.steps,
        "part": contestant.part,
        "precision": contestant.precision,
        "batch": contestant.batch,
        "device": setting.device,
    }
    large = ["--large"] if setting.architecture is LARGE else []
    module = [sys.executable, "-m", "tests.benchmarks.contestants", "--kind", contestant.kind]
    return [*module, "--task", json.dumps(task), "--threads", str(contestant.threads), *large]


def _juicer_command(
    contestant: Contestant, setting: Setting, number: int, own: dict[str, list[str]]
) -> list[str]:
    folder = setting.folder / f"juicer-{number}"
    folder.mkdir(exist_ok=True)
    for role in ("captioner", "matcher"):
        if not (folder / role).exists():
            (folder / role).symlink_to(setting.folder / role)
    (folder / "work.json").write_text(json.dumps(own), encoding="utf-8")
    sizes = ["--captions", contestant.captions, "--steps", setting.steps]
    layout = ["--threads", contestant.threads, "--batch", contestant.batch]
    return [str(x) for x in (setting.juicer, _JUICER, "--folder", folder, *sizes, *layout)]


def _say(process: "subprocess.Popen[str]", line: str) -> None:
    if process.stdin is None:
        raise RuntimeError("the process was started without an input")
    process.stdin.write(line)
    process.stdin.flush()


def _answer(process: "subprocess.Popen[str]", word: str) -> str:
    """Return what follows `word` on the next line that begins with it.

    Raises:
        RuntimeError: the process ended before it.
    """
    for line in process.stdout or ():
        if line.startswith(word):
            return line.removeprefix(word).strip()
    raise RuntimeError(f"{process.args!r} ended before it said {word!r}")


def _closed(process: "subprocess.Popen[str]") -> float:
    """End a process; returns its peak memory in MB, 0 where it does not say."""
    if process.stdin is not None:
        process.stdin.close()
    for line in process.stdout or ():
        if line.startswith("peak"):
            return float(line.split()[1])
    return 0.0


def prepare(setting: Setting) -> None:
    """Write checkpoints, pictures and texts."""
    import numpy as np
    from PIL import Image

    save_pair(setting.architecture, setting.folder)
    rng = np.random.default_rng(0)
    count = setting.images * setting.cores
    images = []
    for number in range(count):
        coarse = rng.integers(0, 255, (32, 24, 3), dtype=np.uint8)
        file = setting.folder / f"{number}.jpg"
        Image.fromarray(coarse).resize((512, 384)).save(file, quality=90)
        images.append(str(file))
    texts = [
        [" ".join(f"w{n}" for n in rng.integers(0, 30_000, _WORDS)) for _ in range(41)]
        for _ in range(count)
    ]
    plain = json.dumps({"images": images, "texts": texts})
    (setting.folder / "work.json").write_text(plain, encoding="utf-8")


def best(contestants: Sequence[Contestant], setting: Setting) -> Timing:
    """Measure several layouts; returns the fastest."""
    images, repeats = min(_RIVAL_IMAGES, setting.images), min(_RIVAL_REPEATS, setting.repeats)
    fewer = replace(setting, images=images, repeats=repeats)
    return min((measure(c, fewer) for c in contestants), key=lambda timing: timing.seconds)


def layouts(name: str, kind: str, precision: str, setting: Setting) -> list[Contestant]:
    """Return the ways in which others are tried."""
    cores = setting.cores
    shapes = [(cores, 1, 1), (cores, 1, 4), (1, cores, 4)] if cores > 1 else [(1, 1, 1), (1, 1, 4)]
    if setting.device != "cpu":
        shapes = [(1, cores, 32), (1, cores, 64)]
    return [Contestant(name, kind, precision, *shape, setting.captions) for shape in shapes]


def own(setting: Setting, precision: str, captions: int, part: str = "both") -> Contestant:
    """Return ours, laid out as a round does."""
    processes = setting.cores if setting.device == "cpu" else 1
    return Contestant(f"capfilt {precision}", "ours", precision, processes, 1, 0, captions, part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and print the tables."""
    given = _parsed(arguments)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            architecture=LARGE if given.large else BASE,
            folder=Path(folder),
            device=given.device,
            cores=given.cores or len(os.sched_getaffinity(0)),
            images=given.images,
            captions=given.captions,
            steps=given.steps,
            repeats=given.repeats,
            juicer=given.data_juicer,
        )
        prepare(setting)
        told = run(setting, grows=not given.no_growth)
    print(json.dumps(told) if given.json else "\n".join(told["lines"]))


def run(setting: Setting, *, grows: bool) -> dict[str, list[str]]:
    """Return the lines of the tables."""
    lines = _head(setting)
    rates = {p: _rate(setting, p) for p in ("bf16", "fp32")}
    lines += [f"matrix rate {p}: {rate / 1e9:,.0f} GFLOP/s, all cores" for p, rate in rates.items()]
    rivals = [
        best(layouts("transformers fp32", "transformers", "fp32", setting), setting),
        best(layouts("transformers bf16", "transformers", "bf16", setting), setting),
    ]
    if setting.juicer:
        rivals.append(best(layouts("data-juicer 1.6.1", "juicer", "fp32", setting), setting))
    mine = [measure(own(setting, p, setting.captions), setting) for p in ("bf16", "fp32")]
    lines += ["", _columns("", "s/image", "ours is", "peak MB", "laid out as")]
    for timing in [*rivals, *mine]:
        ratio = f"{timing.seconds / mine[0].seconds:.2f} x"
        row = (timing.contestant.name, f"{timing.seconds:.3f}", ratio, f"{timing.peak_mb:.0f}")
        lines.append(_columns(*row, timing.contestant.layout))
    lines += _against_limit(setting, rates, mine)
    if grows:
        lines += _growth(setting)
    lines += _decoding(setting, mine[0])
    return {"lines": lines}


def _head(setting: Setting) -> list[str]:
    what = (
        f"{setting.captions} captions of {setting.steps} new tokens, {setting.captions + 1} texts"
    )
    where = f"{setting.cores} cores" if setting.device == "cpu" else setting.device
    return [f"{setting.architecture.name}, 384 px, {what} matched an image, on {where}"]


def _rate(setting: Setting, precision: str) -> float:
    """Return the operations a second of plain products on the whole machine."""
    from tests.benchmarks.contestants import product_count, product_flops

    processes = setting.cores if setting.device == "cpu" else 1
    bare = Contestant("products", "products", precision, processes, 1, 1, 1)
    timing = measure(bare, replace(setting, images=1))
    images = setting.cores // processes or 1
    spent = timing.seconds * images
    pair = product_flops(setting.architecture)
    return product_count(setting.architecture) * pair / spent


def _against_limit(setting: Setting, rates: dict[str, float], mine: Sequence[Timing]) -> list[str]:
    """Return model time over two image tower passes at the bare matrix rate."""
    lines = ["", _columns("model time over two bare image towers", "bf16", "fp32", "", "")]
    limits = [2 * setting.architecture.vision_flops / rates[p] for p in ("bf16", "fp32")]
    one = [measure(own(setting, p, 1), setting) for p in ("bf16", "fp32")]
    for captions, timings in ((1, one), (setting.captions, mine)):
        ratios = [f"{t.seconds / limit:.2f}" for t, limit in zip(timings, limits, strict=True)]
        lines.append(_columns(f"  K = {captions}", *ratios, "", ""))
    return lines


def _growth(setting: Setting) -> list[str]:
    """Return how the cost of captioning grows with K, against transformers'."""
    lines = ["", _columns("captioning alone, s/image", "capfilt", "transf.", "ratio", "bf16")]
    for captions in (1, 4, 10, 40):
        mine = measure(own(setting, "bf16", captions, "caption"), setting)
        shape = (setting.cores, 1) if setting.device == "cpu" else (1, setting.cores)
        other = Contestant("transformers", "transformers", "bf16", *shape, 1, captions, "caption")
        theirs = measure(other, replace(setting, images=min(2, setting.images), repeats=1))
        ratio = f"{theirs.seconds / mine.seconds:.2f} x"
        row = (f"  K = {captions}", f"{mine.seconds:.3f}", f"{theirs.seconds:.3f}", ratio, "")
        lines.append(_columns(*row))
    return lines


def _decoding(setting: Setting, mine: Timing) -> list[str]:
    processes = mine.contestant.processes
    timing = measure(Contestant("decode", "decode", "fp32", processes, 1, 1, 1), setting)
    share = timing.seconds / mine.seconds
    line = f"decoding and resizing: {timing.seconds * 1000:.1f} ms an image"
    return ["", f"{line}, {100 * share:.1f} % of the model's time"]


def _columns(*cells: str) -> str:
    name, *rest = cells
    return f"{name:<40}" + "".join(f"{cell:>10}" for cell in rest[:3]) + f"   {rest[3]}"


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.models", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=16, help="pictures a core")
    parser.add_argument("--captions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16, help="new tokens a caption")
    parser.add_argument("--repeats", type=int, default=3, help="the median of these counts")
    parser.add_argument("--cores", type=int, help="default: all there are")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true", help="BLIP-large instead of BLIP-base")
    parser.add_argument("--no-growth", action="store_true", help="leave out K = 1, 4, 10, 40")
    parser.add_argument("--data-juicer", help="a Python that has py-data-juicer 1.6.1")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
