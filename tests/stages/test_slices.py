"""A pass over slices: every picture is decoded once, and seen once by every image tower."""

import io
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from capfilt import schema
from capfilt.engine.plan import compile_plan
from capfilt.engine.worker import PassJob
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.models.checkpoints import resolve_model
from capfilt.models.clip import ClipMatcher
from capfilt.models.compute.buckets import ImageMemo
from capfilt.models.compute.transfer import PixelUpload
from capfilt.models.compute.vision import VisionTower
from capfilt.models.pixels import load_rgb
from capfilt.models.shared import shared
from capfilt.stages import decoding
from capfilt.stages.caption import Caption
from capfilt.stages.match import MatchCaptions, MatchWeb, ScoreCaptions, ScoreWeb
from tests.models.tiny2 import save_clip
from tests.stages.stand_ins import Fetched

ROWS = 300


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    rows = [
        {"key": f"{n:032x}", "caption": f"a red star {n}", "source_status": "ok", "attempt": 0}
        for n in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows, schema.SOURCE)
    assert ledger.commit(Receipt(source.STAGE, f"00000000-{ROWS}-x", ROWS), table)
    return ledger


def distinct(pixels: torch.Tensor) -> int:
    """Count the images of a tile that are not copies which fill it up."""
    return len({row.numpy().tobytes() for row in pixels})


@pytest.mark.parametrize("rows", [64, 256])
def test_each_picture_is_decoded_and_encoded_once(
    ledger: Ledger, clip: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[Any] = Counter()
    encode, load = VisionTower.__call__, load_rgb

    def encoded(self: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
        seen[id(self)] += distinct(pixels)
        return encode(self, pixels)

    def clip_encoded(self: ClipMatcher, images: torch.Tensor) -> Any:
        seen["clip"] += distinct(images)
        return clip_encode(self, images)

    def loaded(data: bytes, side: int, framing: Any = "squash") -> Any:
        seen[side, framing] += 1
        return load(data, side, framing)

    clip_encode = ClipMatcher._encode
    monkeypatch.setattr(VisionTower, "__call__", encoded)
    monkeypatch.setattr(ClipMatcher, "_encode", clip_encoded)
    monkeypatch.setattr(decoding, "load_rgb", loaded)
    monkeypatch.setattr("capfilt.stages.caption.rows_for", lambda _: rows)
    monkeypatch.setattr("capfilt.stages.match.rows_for", lambda _: rows)
    captioner, matcher = (resolve_model("embedded", role) for role in ("captioner", "matcher"))
    scorer = resolve_model(clip, "matcher")
    stages = [
        Fetched(tuple(map(jpeg, range(ROWS)))),
        Caption(captioner),
        *(stage(matcher) for stage in (MatchWeb, MatchCaptions)),
        *(stage(scorer) for stage in (ScoreWeb, ScoreCaptions)),
    ]
    plan = compile_plan(stages, [f"00000000-{ROWS}-x"])
    for stages_of_pass in plan.passes():
        with PassJob(str(ledger.root), plan, stages_of_pass).open(0, lambda _: None) as do:
            do(plan.shards[0])
    towers = [count for name, count in seen.items() if isinstance(name, int)]
    assert towers == [ROWS, ROWS]  # the captioner's, and one for both match stages
    assert seen["clip"] == ROWS
    assert [seen[key] for key in seen if isinstance(key, tuple)] == [ROWS, ROWS]


def test_states_live_as_long_as_their_pixels() -> None:
    asked: list[int] = []

    def encode(images: torch.Tensor) -> tuple[torch.Tensor]:
        asked.append(len(images))
        return (images.sum((1, 2, 3)).float(),)

    memo, upload = ImageMemo(encode), partial(PixelUpload, size=64, device="cpu")
    images = [np.full((2, 2, 3), n, np.uint8) for n in range(200)]
    first = [float(states) for (states,) in memo.of(images, upload)]
    assert first == [12.0 * n for n in range(200)]
    assert [float(states) for (states,) in memo.of(images[::-1], upload)] == first[::-1]
    assert sum(asked) == 256  # four tiles, the last filled up; the second time none
    assert len(memo) == 200
    del images[50:]
    assert len(memo) == 50
    images.clear()
    assert len(memo) == 0


def test_a_model_that_two_stages_share_is_loaded_once_and_freed_by_the_last() -> None:
    loaded: list[object] = []

    def load() -> object:
        loaded.append(object())
        return loaded[-1]

    with shared("key", load) as one:
        with shared("key", load) as other, shared("another", load) as third:
            assert one is other
            assert third is not one
        with shared("key", load) as again:
            assert again is one
    with shared("key", load) as fresh:
        assert fresh is not one
    assert len(loaded) == 3
