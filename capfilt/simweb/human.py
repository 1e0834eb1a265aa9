"""Human pairs of the simulated world: Parquet in the Hugging Face layout, ready to train on.

Every text is true of its picture, as people's captions of COCO are. No web row shows one of these
scenes; sets that start far enough apart share none either, so one may be held out.

    python -m capfilt.simweb.human --rows 2000 --out human
    python -m capfilt.simweb.human --rows 500 --out held-out --start 1000000 --texts 5
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from capfilt.errors import CapfiltError, InputError
from capfilt.ledger.publish import Publisher
from capfilt.simweb.corruption import Noise
from capfilt.simweb.falsehoods import false_text
from capfilt.simweb.grammar import describe
from capfilt.simweb.pictures import draw_size, rng_of
from capfilt.simweb.render import render, to_jpeg
from capfilt.simweb.scenes import Scene, sample_scene
from capfilt.simweb.web import HUMAN_SCENES

FILE: Final = "data/train-00000-of-00001.parquet"
_PLAIN: Final = Noise(tiny=0.0, banner=0.0)
_RECIPE: Final = b"capfilt.human_pairs"
_IMAGES_A_GROUP: Final = 512
_QUALITY: Final = 95  # of what was made smaller, as img2dataset writes it
_SCHEMA: Final = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("text", pa.string()),
        ("origin", pa.string()),
        ("hard_negative", pa.string()),  # almost true, and false
        ("scene_index", pa.int64()),  # for `sample_scene` with the seed of the set
    ]
)


@dataclass(frozen=True, slots=True)
class HumanSet:
    """`images` pictures with `texts` captions each, a function of these fields.

    Scenes are numbered from `start`. `items`: only scenes of so many things; with 1 the texts are
    like the labels of a classified collection. `side`: length of the shorter side in pixels; None
    leaves pictures as people have them, 96 to 400 pixels. `hard_negatives`: each text has a false
    one beside it, of which a filter learns what to refuse; otherwise that column is null. `worn`:
    pictures were compressed before, at 60 to 95, as the web's are.
    """

    images: int
    texts: int = 1
    seed: int = 0
    start: int = 0
    items: int | None = None
    side: int | None = None
    hard_negatives: bool = False
    worn: bool = False

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("texts", 1), ("start", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: give at least {least}")
        if self.items is not None and self.items not in (1, 2, 3):
            raise InputError(f"items={self.items}: scenes show 1, 2 or 3 things")
        if self.side is not None and self.side < 8:
            raise InputError(f"side={self.side}: give at least 8 pixels")

    def scenes(self) -> Iterator[tuple[int, Scene]]:
        """Yield the scenes of the set, each with its number."""
        number, found = HUMAN_SCENES + self.start, 0
        while found < self.images:
            scene = sample_scene(self.seed, number)
            if self.items in (None, len(scene.items)):
                found += 1
                yield number, scene
            number += 1


def write_human(wanted: HumanSet, folder: Path) -> Path:
    """Write the set into `folder`, or find it there; returns the file.

    Raises:
        InputError: the folder holds another set.
    """
    file = folder / FILE
    told = json.dumps(asdict(wanted)).encode()
    schema = _SCHEMA.with_metadata({_RECIPE: told})

    def write(out: BinaryIO) -> None:
        with pq.ParquetWriter(out, schema) as writer:
            for rows in _blocks(wanted):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))

    if not file.exists():
        Publisher(folder).publish(FILE, write)
    if (pq.read_schema(file).metadata or {}).get(_RECIPE) != told:
        raise InputError(f"{file} is another set of pairs; give another folder, or remove it")
    return file


def _blocks(wanted: HumanSet) -> Iterator[list[dict[str, Any]]]:  # rows as pyarrow takes them
    rows: list[dict[str, Any]] = []
    for place, (number, scene) in enumerate(wanted.scenes(), 1):
        rows += _rows(wanted, number, scene)
        if place % _IMAGES_A_GROUP == 0:
            yield rows
            rows = []
    if rows:
        yield rows


def _rows(wanted: HumanSet, number: int, scene: Scene) -> list[dict[str, Any]]:
    """Return an image's rows, one a text; false texts are drawn apart from the true ones."""
    key = f"human-{number - HUMAN_SCENES:012d}"
    image = {"bytes": _picture(wanted, number, scene), "path": f"{key}.jpg"}
    words = rng_of(wanted.seed, "human", number)
    lies = rng_of(wanted.seed, "human lies", number)
    texts = [describe(scene, words) for _ in range(wanted.texts)]
    return [
        {
            "key": key,
            "image": image,
            "text": text,
            "origin": "human",
            "hard_negative": false_text(scene, text, lies) if wanted.hard_negatives else None,
            "scene_index": number,
        }
        for text in texts
    ]


def _picture(wanted: HumanSet, number: int, scene: Scene) -> bytes:
    rng = rng_of(wanted.seed, "human picture", number)
    image = render(scene, *draw_size(rng, _PLAIN), rng)
    if wanted.worn:
        with Image.open(io.BytesIO(to_jpeg(image, rng.randint(60, 95)))) as stored:
            image = stored.convert("RGB")
    if wanted.side is not None:
        shorter = min(image.size)
        width, height = (round(length * wanted.side / shorter) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return to_jpeg(image, _QUALITY)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a set and print where it is."""
    parser = argparse.ArgumentParser(prog="python -m capfilt.simweb.human", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, required=True, help="pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--texts", type=int, default=1, help="texts a picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first scene")
    parser.add_argument("--items", type=int, default=None, help="only scenes of so many things")
    parser.add_argument("--side", type=int, default=None, help="pixels of the shorter side")
    parser.add_argument("--hard-negatives", action="store_true", help="a false text a text")
    given = parser.parse_args(arguments)
    try:
        wanted = HumanSet(
            given.rows,
            given.texts,
            given.seed,
            given.start,
            given.items,
            given.side,
            given.hard_negatives,
        )
        print(json.dumps({"pairs": str(write_human(wanted, given.out))}))
    except CapfiltError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
