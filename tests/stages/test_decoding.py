"""Decoding for the models: ahead of its turn, at a fraction of the size, and hurt row by row."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from capfilt.models.pixels import UndecodableImage, load_rgb
from capfilt.stages import decoding as decoded
from capfilt.stages.decoding import ImageTransform, decode_rows, rows_for, threads_for


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def batch_of(images: list[bytes | None]) -> pa.RecordBatch:
    return pa.record_batch({"image": pa.array(images, pa.binary())})


def test_what_was_decoded_ahead_is_found() -> None:
    load_rgb.cache_clear()
    batch = batch_of([jpeg(40, 30, 1), None, b"no image", jpeg(50, 30, 2)])
    transform = ImageTransform(lambda b: b, 16, threads=2)
    transform.ahead(batch)
    decoded._pool(2).shutdown()  # waits for what was begun
    decoded._pool.cache_clear()
    before = load_rgb.cache_info()
    assert before.currsize == 2
    places, images, errors = decode_rows(batch.column("image"), 16)
    after = load_rgb.cache_info()
    assert after.hits - before.hits == 2
    assert places == [0, 3]
    assert [image.shape for image in images] == [(16, 16, 3)] * 2
    assert errors[2] is not None
    assert "UnidentifiedImageError" in errors[2]


def test_on_a_cpu_nothing_is_decoded_ahead() -> None:
    load_rgb.cache_clear()
    assert threads_for("cpu") == 0
    ImageTransform(lambda b: b, 16, threads_for("cpu")).ahead(batch_of([jpeg(40, 30)]))
    assert load_rgb.cache_info().currsize == 0
    assert threads_for("cuda:0") >= 1
    assert rows_for("cuda:1") > rows_for("cpu")


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (4000, 700), (3000, 3000)])
def test_decoding_at_a_fraction_of_the_size_shows_the_same(width: int, height: int) -> None:
    data = jpeg(width, height)
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC)
    difference = np.abs(load_rgb(data, 96).astype(int) - np.asarray(whole).astype(int))
    assert difference.mean() < 1.0
    assert difference.max() < 12


def test_small_pictures_are_decoded_whole() -> None:
    data = jpeg(300, 200)
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC)
    assert np.array_equal(load_rgb(data, 96), np.asarray(whole))


def test_a_cut_off_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UndecodableImage, match="OSError: image file is truncated"):
        load_rgb(jpeg(300, 200)[:900], 96)
