"""The simulated web: rows of (url, alt text) as a crawl finds them, each with its known truth.

Row `i` of a web is a pure function of (seed, i, noise), so any row of a million is at hand
without the others, and two processes agree without talking. The pipeline sees `urls.parquet`
alone; `truth.parquet` is for judging it.

    python -m capfilt.simweb.web --rows 1000 --out web --base-url http://127.0.0.1:8000
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import CapfiltError, InputError
from capfilt.simweb import alttext
from capfilt.simweb.corruption import AltText, Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.grammar import corrupt, describe, facts_true
from capfilt.simweb.languages import translate
from capfilt.simweb.pictures import (
    Picture,
    draw,
    find_picture,
    image_bytes,
    index_in,
    picture_of,
    rng_of,
)
from capfilt.simweb.scenes import sample_scene

DEFAULT_NOISE = Noise()
REFUSED_URL = "http://127.0.0.1:1"  # nobody listens on tcpmux, and a refusal takes no time
HUMAN_SCENES: Final = 1 << 48  # human pairs show the scenes from here on, web rows those below
_ROWS_A_GROUP = 8192


@dataclass(frozen=True, slots=True)
class WebRow:
    """One row of the crawl with its truth.

    `caption_true` is what `facts_true` says of `caption`: an English sentence that states facts,
    all of them true of the scene. It is False for a true sentence in another language, and may
    be True for a truncated one whose beginning stands alone.
    """

    index: int
    picture: Picture
    kind: AltText
    caption: str
    caption_true: bool
    true_caption: str

    @property
    def path(self) -> str:
        """Path of the picture's address; several rows may share it."""
        return self.picture.path

    @property
    def fault(self) -> Fault:
        """What goes wrong when the address is fetched."""
        return self.picture.fault

    @property
    def scene_index(self) -> int:
        """The scene that the picture shows: the row of its first appearance."""
        return self.picture.scene_index

    @property
    def duplicate_of(self) -> int | None:
        """The earlier row whose picture this one repeats, exactly or nearly."""
        return self.picture.duplicate_of

    def url(self, base_url: str) -> str:
        """Address of the picture on the server at `base_url` (a dead port for REFUSED)."""
        base = REFUSED_URL if self.fault is Fault.REFUSED else base_url.rstrip("/")
        return base + self.path


@dataclass(frozen=True, slots=True)
class SimulatedWeb:
    """A whole web of `rows` rows (None: without end)."""

    seed: int
    rows: int | None = None
    noise: Noise = DEFAULT_NOISE

    def row(self, index: int) -> WebRow:
        """Return row `index`; raises InputError outside [0, rows)."""
        if not self._has(index):
            raise InputError(f"row {index}: this web has the rows 0 to {self.rows} (excluded)")
        return web_row(self.seed, index, self.noise)

    def picture_at(self, path: str) -> Picture | None:
        """Return what lies at the path, or None."""
        index = index_in(path)
        if index is None or not self._has(index):
            return None
        return find_picture(self.seed, path, self.noise)

    def image_bytes(self, picture: Picture) -> bytes:
        """Draw the picture as a JPEG file."""
        return image_bytes(self.seed, picture)

    def _has(self, index: int) -> bool:
        return index >= 0 and (self.rows is None or index < self.rows)


class WebFiles(NamedTuple):
    """What `write_web` wrote."""

    urls: Path  # url, caption: the input of the pipeline
    truth: Path  # one row for each row of urls, in the same order


def web_row(seed: int, index: int, noise: Noise = DEFAULT_NOISE) -> WebRow:
    """Return row `index` (0 or more) of the web of `seed`."""
    picture = picture_of(seed, index, noise)
    scene = sample_scene(seed, picture.scene_index)
    rng = rng_of(seed, "text", index)
    true_caption = describe(scene, rng)
    kind = draw(rng, noise.texts, AltText.TRUE)
    caption = _alt_text(kind, seed, picture.scene_index, true_caption, rng)
    return WebRow(index, picture, kind, caption, facts_true(caption, scene), true_caption)


def truth_of(seed: int, path: str, noise: Noise = DEFAULT_NOISE) -> WebRow:
    """Return the row that brought the address `path` into the web.

    Later rows with the same address show the same picture beside another text. Raises
    InputError where no row has this address.
    """
    index = index_in(path)
    if index is None or find_picture(seed, path, noise) is None:
        raise InputError(f"{path!r}: no address of the simulated web with seed {seed}")
    return web_row(seed, index, noise)


def _alt_text(kind: AltText, seed: int, scene_index: int, true_caption: str, rng: Random) -> str:
    match kind:
        case AltText.TRUE:
            return true_caption
        case AltText.MISMATCHED:
            return _mismatched(seed, scene_index, rng)
        case AltText.WRONG_ATTRIBUTE:
            return corrupt(true_caption, sample_scene(seed, scene_index), rng)
        case AltText.TRUNCATED:
            return alttext.truncated(true_caption, rng)
        case AltText.OTHER_LANGUAGE:
            return translate(sample_scene(seed, scene_index), rng)
        case AltText.BOILERPLATE:
            return alttext.boilerplate(rng)
        case AltText.FILE_NAME:
            return alttext.file_name(rng)
        case AltText.EMPTY:
            return ""
        case AltText.HOSTILE:
            return alttext.hostile(true_caption, rng)


def _mismatched(seed: int, scene_index: int, rng: Random) -> str:
    """Describe another picture, and not one that happens to fit this one too."""
    scene = sample_scene(seed, scene_index)
    while True:
        other = describe(sample_scene(seed, rng.randrange(1 << 40)), rng)
        if not facts_true(other, scene):
            return other


_URLS = pa.schema([("url", pa.string()), ("caption", pa.string())])
_TRUTH = pa.schema(
    [
        ("row", pa.int64()),
        ("url", pa.string()),
        ("path", pa.string()),
        ("kind", pa.string()),
        ("caption", pa.string()),
        ("caption_true", pa.bool_()),
        ("true_caption", pa.string()),
        ("scene_index", pa.int64()),
        ("copy", pa.string()),
        ("duplicate_of", pa.int64()),  # a row; null for originals
        ("fault", pa.string()),
    ]
)


def write_web(
    out_dir: Path, rows: int, seed: int, base_url: str, noise: Noise = DEFAULT_NOISE
) -> WebFiles:
    """Write `urls.parquet` and `truth.parquet` of the first `rows` rows into `out_dir`.

    Memory does not grow with `rows`. Each file appears whole or not at all, and replaces an
    older one. Raises InputError where `rows` is negative.
    """
    if rows < 0:
        raise InputError(f"rows={rows}: a web has 0 rows or more")
    out_dir.mkdir(parents=True, exist_ok=True)
    files = WebFiles(out_dir / "urls.parquet", out_dir / "truth.parquet")
    drafts = [file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in files]
    recipe = json.dumps({"seed": seed, "rows": rows, "noise": asdict(noise)})
    truth = _TRUTH.with_metadata({"capfilt.simulated_web": recipe})
    try:
        with pq.ParquetWriter(drafts[0], _URLS) as urls, pq.ParquetWriter(drafts[1], truth) as full:
            for start in range(0, rows, _ROWS_A_GROUP):
                stop = min(rows, start + _ROWS_A_GROUP)
                table = _table(seed, range(start, stop), base_url, noise, truth)
                urls.write_table(table.select(_URLS.names))
                full.write_table(table)
        for draft, file in zip(drafts, files, strict=True):
            os.replace(draft, file)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return files


def _table(seed: int, indices: range, base_url: str, noise: Noise, schema: pa.Schema) -> pa.Table:
    rows = [web_row(seed, index, noise) for index in indices]
    return pa.table(
        [
            list(indices),
            [row.url(base_url) for row in rows],
            [row.path for row in rows],
            [row.kind.value for row in rows],
            [row.caption for row in rows],
            [row.caption_true for row in rows],
            [row.true_caption for row in rows],
            [row.scene_index for row in rows],
            [row.picture.copy.value for row in rows],
            [row.duplicate_of for row in rows],
            [row.fault.value for row in rows],
        ],
        schema=schema,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the two files and print where they are, as a JSON line."""
    parser = argparse.ArgumentParser(prog="python -m capfilt.simweb.web", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--base-url", required=True, help="what the server printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=1.0, help="scale of the noise, 0 to 1")
    options = parser.parse_args(arguments)
    try:
        noise = DEFAULT_NOISE.scaled(options.noise)
        files = write_web(options.out, options.rows, options.seed, options.base_url, noise)
    except CapfiltError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(json.dumps({name: str(path) for name, path in files._asdict().items()}))


if __name__ == "__main__":
    main()
