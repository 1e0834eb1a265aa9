"""Decoding for the models: ahead of its turn, at a fraction of the size, and hurt row by row."""

import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from capfilt.models.pixels import Framing, UndecodableImage, load_rgb
from capfilt.models.protocols import Pixels
from capfilt.stages import decoding
from capfilt.stages.decoding import SliceImages, rows_for, threads_for


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


class Counting:
    """`load_rgb`, with the number of pictures that were really decoded, by thread."""

    def __init__(self) -> None:
        self.by_thread: Counter[bool] = Counter()

    def __call__(self, data: bytes, side: int, framing: Framing = "squash") -> Pixels:
        self.by_thread[threading.current_thread() is threading.main_thread()] += 1
        return load_rgb(data, side, framing)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(decoding, "load_rgb", counting)
    return counting


def column_of(images: list[bytes | None]) -> pa.Array:
    return pa.array(images, pa.binary())


def test_a_picture_is_decoded_once_for_each_side_and_framing(counting: Counting) -> None:
    images = SliceImages(column_of([jpeg(40, 30, 1), None, b"no image", jpeg(50, 30, 2)]))
    found = images.decoded(16)
    assert found.places == [0, 3]
    assert [image.shape for image in found.images] == [(16, 16, 3)] * 2
    assert found.errors[0] is found.errors[1] is None
    assert "UnidentifiedImageError" in str(found.errors[2])
    assert images.decoded(16) is found
    assert images.decoded(16, "crop").images[0] is not found.images[0]
    assert images.decoded(24).images[0].shape == (24, 24, 3)
    assert counting.by_thread == {True: 9}


def test_what_was_begun_ahead_is_not_decoded_again(counting: Counting) -> None:
    images = SliceImages(column_of([*(jpeg(40, 30, n) for n in range(5)), b"no image", None]))
    with ThreadPoolExecutor(2) as pool:
        images.begin(16, "squash", pool)
        images.begin(16, "squash", pool)
        found = images.decoded(16)
        images.begin(16, "squash", pool)
    assert counting.by_thread == {False: 6}
    expected = SliceImages(column_of([jpeg(40, 30, n) for n in range(5)])).decoded(16)
    assert all(map(np.array_equal, found.images, expected.images))
    assert found.errors[5] is not None


def test_a_gpu_has_threads_that_decode_and_a_cpu_has_none() -> None:
    assert threads_for("cpu") == 0
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
