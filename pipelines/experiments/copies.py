"""How well near-duplicates are found: every dedup method against the simulated web's own truth.

    python -m pipelines.experiments.copies [MODELS] [--rows N]

Pictures go the way of a round: served bytes, re-encoded by the downloader, embedded by the matcher.
Two pictures are copies where the web says that they show the same row's scene.
"""

import argparse
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from capfilt.models.checkpoints import resolve_model
from capfilt.simweb.corruption import Noise
from capfilt.simweb.pictures import image_bytes
from capfilt.simweb.render import to_jpeg
from capfilt.simweb.web import web_row
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.dedup.phash import Phash
from capfilt.stages.match import MatchWeb
from pipelines.experiments.quality import MODELS

_REENCODED: Final = 95  # the quality that img2dataset writes by default
_SLICE: Final = 256
_METHODS: Final = (
    Dedup("sha256"),
    *(Dedup("phash", radius=radius) for radius in (0, 1, 3, 6)),
    *(Dedup("embedding", similarity=cosine) for cosine in (0.97, 0.98, 0.99, 0.995, 0.998)),
    *(
        Dedup("both", radius=radius, similarity=cosine)
        for radius in (6, 8, 10)
        for cosine in (0.97, 0.98, 0.99)
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What one method found, of `copies` that there are: shares in [0, 1].

    `precision`: of the rows it drops, those whose picture truly is a copy of the one it keeps;
    `recall`: of the rows that are copies of a picture kept, those it drops.
    """

    method: str
    dropped: int
    precision: float
    recall: float

    def line(self) -> str:
        """Return a line of the table."""
        return f"{self.method:<22}{self.dropped:>9}{self.precision:>11.3f}{self.recall:>9.3f}"


def measure(models: Path, rows: int, seed: int) -> list[Found]:
    """Judge every method on the healthy pictures of the first `rows` rows of a web."""
    scenes, table = _table(models, rows, seed)
    return [_judged(method, table, scenes) for method in _METHODS]


def _table(models: Path, rows: int, seed: int) -> tuple[list[int], pa.Table]:
    """Return the scene that each picture shows, and the columns that dedup reads."""
    healthy = Noise(faults=())
    matcher = MatchWeb(resolve_model(str(models / "matcher"), "matcher"))
    scenes: list[int] = []
    batches: list[pa.RecordBatch] = []
    with matcher.open() as match, Phash().open() as phash:
        for start in tqdm(range(0, rows, _SLICE), desc="copies", disable=None):
            drawn = [web_row(seed, n, healthy) for n in range(start, min(start + _SLICE, rows))]
            scenes += [row.scene_index for row in drawn]
            images = [_stored(image_bytes(seed, row.picture)) for row in drawn]
            pictures = pa.record_batch(
                {"image": pa.array(images), "caption": [row.caption for row in drawn]}
            )
            scored = match(pictures)
            batches.append(
                pa.record_batch(
                    {
                        "key": [f"{row.index:032x}" for row in drawn],
                        "url": [row.url("http://web") for row in drawn],
                        "image_ref": pa.nulls(len(drawn), pa.string()),
                        "sha256": [hashlib.sha256(image).hexdigest() for image in images],
                        "itm_score": scored["itm_score"],
                        "caption_itm_scores": pa.nulls(len(drawn), pa.list_(pa.float32())),
                        "image_embedding": scored["image_embedding"],
                        "phash": phash(pictures.select(["image"]))["phash"],
                    }
                )
            )
    return scenes, pa.Table.from_batches(batches)


def _stored(served: bytes) -> bytes:
    with Image.open(io.BytesIO(served)) as image:
        return to_jpeg(image.convert("RGB"), _REENCODED)


def _judged(method: Dedup, table: pa.Table, scenes: list[int]) -> Found:
    [answer] = method.solve(iter([table.select(list(method.needs))]))
    owners = answer["dup_of"].to_pylist()
    dropped = [(n, int(owner, 16)) for n, owner in enumerate(owners) if owner is not None]
    right = sum(scenes[n] == scenes[owner] for n, owner in dropped)
    copies = sum(count - 1 for count in Counter(scenes).values())
    name = {
        "sha256": "sha256",
        "phash": f"phash, {method.radius} bits",
        "embedding": f"embedding, {method.similarity}",
        "both": f"both, {method.radius} bits, {method.similarity}",
    }[method.method]
    return Found(name, len(dropped), right / max(1, len(dropped)), right / max(1, copies))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.experiments.copies", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", type=Path, nargs="?", default=MODELS, help="folder of both")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=900_001)
    given = parser.parse_args(arguments)
    print(f"{'method':<22}{'dropped':>9}{'precision':>11}{'recall':>9}")
    for found in measure(given.models, given.rows, given.seed):
        print(found.line())


if __name__ == "__main__":
    main()
