"""The experiment's data: human pairs, the downloaded web, and its cleanings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capfilt.commands.hardware import Hardware
from capfilt.commands.run import run as run_round
from capfilt.engine.finish import Finished
from capfilt.inputs import InputSpec
from capfilt.progress import Progress
from capfilt.recipe.options import RoundOptions
from capfilt.simweb.human import HumanSet, write_human
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb, write_web
from pipelines.experiments.proof.design import ARMS, Cleaning, Design

_HELD_OUT_TEXTS: Final = 5  # as COCO has
_HELD_OUT_START: Final = 1_000_000


def write_pairs(design: Design, root: Path) -> None:
    """Write the human pairs, and those that are held out."""
    seed, side = design.seed, design.side
    write_human(HumanSet(design.human, seed=seed, side=side), root / "human")
    held_out = HumanSet(design.held_out, _HELD_OUT_TEXTS, seed, _HELD_OUT_START, side=side)
    write_human(held_out, root / "held-out")


def download(design: Design, root: Path, progress: Progress) -> Path:
    """Serve the web, fetch it once; returns the export of the web's own pairs."""
    with WebServer(web=SimulatedWeb(design.seed)) as server:
        # Addresses of another port would be another input: a resume fetches all of it again.
        write_web(root / "web", design.rows, design.seed, server.base_url)
        return Path(_run(design, root, RoundOptions(policy="raw"), progress).dataset)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """An export, and the shares of web and synthetic texts that its policy rejected."""

    export: str
    rejected_web: float | None
    rejected_synthetic: float | None


def clean(
    design: Design, root: Path, how: Cleaning, models: tuple[Path, Path], progress: Progress
) -> dict[str, Cleaned]:
    """Clean the web by (captioner, matcher); returns what came of it, by arm."""
    captioner, matcher = map(str, models)
    options = RoundOptions(captioner=captioner, matcher=matcher, beams=how.beams, dedup="sha256")
    found = {}
    for arm in (arm for arm in ARMS if arm.clean == how.name):
        threshold = design.threshold if arm.filtered else 0.0
        told = RoundOptions(**options, threshold=threshold, origins=arm.origins)
        done = _run(design, root, told, progress)
        noise = done.funnel.noise
        found[arm.name] = Cleaned(done.dataset, noise["web"], noise["synthetic"])
    return found


def _run(design: Design, root: Path, options: RoundOptions, progress: Progress) -> Finished:
    told = RoundOptions(
        **options,
        allow_private_hosts=True,  # the simulated web is on this machine
        image_size=design.side,
        shard_rows=200,
        timeout=3.0,
        total_timeout=6.0,
    )
    spec = InputSpec((str(root / "web" / "urls.parquet"),))
    hardware = Hardware(workers=1, device="cpu")
    result = run_round(spec, told, root / "run", hardware, progress, lambda _: None)
    if result.finished is None:
        raise RuntimeError("a run without ranks ends with an export")
    return result.finished
