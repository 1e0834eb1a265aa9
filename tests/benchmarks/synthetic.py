"""A run folder whose download, hashes, captions and scores are made up, for what comes after them.

The columns are published by the ledger itself, as the stages would publish them; the models are
what makes 200,000 rows dear, and what is measured here does not depend on them.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capfilt import schema
from capfilt.engine.plan import Plan, PlannedStage
from capfilt.ledger.ledger import Ledger, Receipt

DIMENSIONS: Final = 64
Columns = Callable[[np.random.Generator, list[str]], pa.Table]


def write_urls(file: Path, rows: int) -> None:
    """Write a list of addresses that nobody fetches."""
    step = 50_000
    names = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(file, names) as out:
        for start in range(0, rows, step):
            numbers = range(start, min(rows, start + step))
            urls = [f"http://img{n % 97}.example.com/photos/{n}.jpg" for n in numbers]
            out.write_table(pa.table([urls, [f"a picture, number {n}" for n in numbers]], names))


def publish(ledger: Ledger, plan: Plan, keys: Callable[[str], list[str]]) -> None:
    """Publish what the stages before the dedup barrier would, for every shard of a plan."""
    for place, shard in enumerate(plan.shards):
        own = keys(shard)
        for planned in plan.stages:
            columns = _COLUMNS.get(planned.stage.name)
            if columns is None:
                continue
            table = columns(np.random.default_rng([place, len(planned.stage.name)]), own)
            _commit(ledger, planned, shard, table)


def _commit(ledger: Ledger, planned: PlannedStage, shard: str, table: pa.Table) -> None:
    ledger.commit(Receipt(planned.id, shard, table.num_rows, 0.1), table.cast(planned.stage.adds))


def _download(rng: np.random.Generator, keys: list[str]) -> pa.Table:
    count, picture = len(keys), _picture()
    images = [picture + key.encode() for key in keys]  # bytes after its end are not looked at
    return pa.table(
        [
            [schema.SUCCESS] * count,
            pa.nulls(count, pa.string()),
            pa.nulls(count, pa.string()),
            images,
            [len(image) for image in images],
            *([256] * count for _ in range(4)),
            pa.nulls(count, pa.string()),
            [hashlib.sha256(image).hexdigest() for image in images],
        ],
        names=schema.DOWNLOAD.names,
    )


def _phash(rng: np.random.Generator, keys: list[str]) -> pa.Table:
    return pa.table({"phash": rng.integers(0, 2**63, len(keys), dtype=np.uint64)})


def _caption(rng: np.random.Generator, keys: list[str]) -> pa.Table:
    texts = [[f"a synthetic caption of {key[:8]}"] for key in keys]
    return pa.table({"captions": texts, "caption_error": pa.nulls(len(keys), pa.string())})


def _match_web(rng: np.random.Generator, keys: list[str]) -> pa.Table:
    vectors = rng.normal(size=(len(keys), DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return pa.table(
        {
            "itm_score": rng.random(len(keys), np.float32),
            "itc_score": rng.random(len(keys), np.float32),
            "image_embedding": list(vectors),
            "match_error": pa.nulls(len(keys), pa.string()),
        }
    )


def _match_captions(rng: np.random.Generator, keys: list[str]) -> pa.Table:
    scores = [[score] for score in rng.random(len(keys), np.float32)]
    return pa.table({"caption_itm_scores": scores, "caption_itc_scores": scores})


_COLUMNS: Final[dict[str, Columns]] = {
    "download": _download,
    "phash": _phash,
    "caption": _caption,
    "match_web": _match_web,
    "match_captions": _match_captions,
}


def _picture() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 30)).save(out, "JPEG")
    return out.getvalue()
