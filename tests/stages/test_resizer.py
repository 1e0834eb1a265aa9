"""Our resizer against img2dataset's: its sizes, options and statuses, and nearly its pixels."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capfilt.errors import InputError, WorkerError
from capfilt.stages.download import decoder as decoders
from capfilt.stages.download.decoder import DecoderProcess, decoder_process
from capfilt.stages.download.resizer import EncodeFormat, Resize, Resized, ResizeMode, Resizer

# img2dataset imports a module that Python has announced to remove.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
    # albumentations of an option that img2dataset gives it.
    pytest.mark.filterwarnings("ignore:.*fill instead"),
]

MODES: tuple[ResizeMode, ...] = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
SIZES = ((60, 60), (64, 100), (101, 64), (200, 133), (37, 250), (333, 334), (129, 128))


def picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width * height).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixels(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def ours(data: bytes, how: Resize) -> Resized:
    return Resizer(how)(io.BytesIO(data))


@pytest.fixture(scope="module")
def theirs() -> Callable[[bytes, Resize], Resized]:
    from capfilt.stages.download.stage import quiet_dependencies

    quiet_dependencies()
    from img2dataset.resizer import Resizer as Original

    def resized(data: bytes, how: Resize) -> Resized:
        names = (
            *("image_size", "resize_mode", "resize_only_if_bigger", "encode_format"),
            *("encode_quality", "skip_reencode", "min_image_size", "max_image_area"),
            "max_aspect_ratio",
        )
        answer: Resized = Original(**{name: getattr(how, name) for name in names})(io.BytesIO(data))
        return answer

    return resized


@pytest.mark.parametrize("bigger_only", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sizes_and_pixels_are_those_of_img2dataset(
    mode: ResizeMode, bigger_only: bool, theirs: Callable[[bytes, Resize], Resized]
) -> None:
    how = Resize(64, mode, bigger_only, "png", 1)
    for size, form in itertools.product(SIZES, ("PNG", "JPEG")):
        data = encoded(picture(*size), form)
        image, *sizes = ours(data, how)
        expected, *expected_sizes = theirs(data, how)
        assert sizes == expected_sizes
        assert pixels(image).shape == (sizes[1], sizes[0], 3)
        if mode == "border":  # albumentations has renamed the option that made its border white
            continue
        assert np.abs(pixels(image) - pixels(expected)).mean() < 1.0, (size, form)


def test_a_border_is_white_and_around_the_middle() -> None:
    image, width, height, *_ = ours(
        encoded(picture(128, 64), "PNG"), Resize(64, "border", True, "png", 1)
    )
    assert (width, height) == (64, 64)
    assert (pixels(image)[:16] == 255).all()
    assert (pixels(image)[48:] == 255).all()
    assert (pixels(image)[16:48] < 255).any(axis=2).all()


@pytest.mark.parametrize(
    "how",
    [
        Resize(min_image_size=101),
        Resize(max_image_area=9999),
        Resize(max_aspect_ratio=1.5),
        Resize(),
    ],
)
def test_what_img2dataset_refuses_is_refused_in_its_words(
    how: Resize, theirs: Callable[[bytes, Resize], Resized]
) -> None:
    data = encoded(picture(200, 100), "JPEG")
    reason = ours(data, how)[-1]
    expected = theirs(data, how)[-1]
    assert (reason is None) == (expected is None)
    assert reason is None or reason.partition(": ")[2] == expected


@pytest.mark.parametrize(("form", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_bytes_that_every_decoder_shows_as_meant_are_kept(form: EncodeFormat, name: str) -> None:
    how = Resize(64, "no", encode_format=form, encode_quality=9, skip_reencode=True)
    for image in (picture(90, 60), picture(90, 60).convert("L")):
        data = encoded(image, name)
        assert ours(data, how) == (data, 90, 60, 90, 60, None)
    scaled = Resize(32, encode_format=form, encode_quality=9, skip_reencode=True)
    assert ours(data, scaled)[1:3] == (48, 32)
    small = Resize(200, encode_format=form, encode_quality=9, skip_reencode=True)
    assert ours(data, small)[0] == data


def odd_pictures() -> dict[str, tuple[bytes, EncodeFormat]]:
    """Pictures in the format that is stored, which not every decoder shows as a viewer does."""
    image, exif = picture(90, 60), Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (90, 60))]}
    alpha = image.copy()
    alpha.putalpha(120)
    deep = Image.fromarray((np.arange(5400).reshape(60, 90) * 12).astype(np.uint16))
    return {
        "turned JPEG": (encoded(image, "JPEG", exif=exif), "jpg"),
        "turned PNG": (encoded(image, "PNG", exif=exif), "png"),
        "turned WebP": (encoded(image, "WEBP", exif=exif), "webp"),
        "CMYK": (encoded(image.convert("CMYK"), "JPEG"), "jpg"),
        "alpha PNG": (encoded(alpha, "PNG"), "png"),
        "alpha WebP": (encoded(alpha, "WEBP"), "webp"),
        "palette with a clear colour": (encoded(image.quantize(9), "PNG", transparency=1), "png"),
        "16 bits": (encoded(deep, "PNG"), "png"),
        "animated WebP": (encoded(image, "WEBP", **frames), "webp"),
        "animated PNG": (encoded(image, "PNG", **frames), "png"),
    }


@pytest.mark.parametrize("name", odd_pictures())
@pytest.mark.parametrize("mode", ["no", "keep_ratio"])
def test_others_are_stored_upright_and_without_a_tag(name: str, mode: ResizeMode) -> None:
    data, form = odd_pictures()[name]
    how = Resize(384, mode, encode_format=form, encode_quality=9, skip_reencode=True)
    image, width, height, original_width, original_height, reason = ours(data, how)
    assert reason is None
    assert image is not None
    assert image != data
    expected = (60, 90) if name.startswith("turned") else (90, 60)
    assert (width, height) == (original_width, original_height) == expected
    with Image.open(io.BytesIO(image)) as stored:
        assert stored.size == expected
        assert stored.mode in {"RGB", "L"}
        assert stored.getexif().get(0x0112, 1) == 1
        assert getattr(stored, "n_frames", 1) == 1


def test_what_an_encoder_cannot_hold_is_a_reason_of_its_own() -> None:
    wide = encoded(Image.new("L", (70_000, 4)), "PNG")
    for form in ("jpg", "webp"):
        how = Resize(resize_mode="no", encode_format=form, max_aspect_ratio=1e9)
        assert ours(wide, how)[-1] == f"too_many_pixels: too long for {form}"


@pytest.mark.parametrize("quality", [-1, 10, 95])
def test_a_quality_that_the_encoder_has_not_is_refused(quality: int) -> None:
    with pytest.raises(InputError, match="0 to 9"):
        Resize(encode_format="png", encode_quality=quality).check_quality()


# --- in a process of its own


def test_the_process_answers_what_the_resizer_does() -> None:
    data = [encoded(picture(*size), "JPEG") for size in SIZES] + [
        b"",
        b"no picture",
        b"\xff\xd8\xff",
    ]
    how = Resize(64)
    with decoder_process(how) as decoder:
        assert [decoder(io.BytesIO(d)) for d in data] == [ours(d, how) for d in data]
        decoder.check()


_PLUGIN = """
import os, sys
from PIL import Image, ImageFile
Image.init()
def crashing(fp, filename):
    word = fp.read(16)[8:].rstrip()
    if word == b"abort":
        os.abort()
    if word == b"kill":
        os.kill(os.getpid(), 9)
    if word == b"exit":
        os._exit(7)
    if word == b"memory":
        raise MemoryError
    if word == b"once" and not os.path.exists(os.environ["CRASHED"]):
        open(os.environ["CRASHED"], "x").close()
        os.abort()
    raise SyntaxError("no picture")
Image.register_open("XVTHUMB", crashing, lambda prefix: prefix[:8] == b"CRASHING")
"""


@pytest.fixture
def crashing_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every Python that is started from here one with a decoder that ends its process."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("CRASHED", str(tmp_path / "crashed"))


@pytest.mark.usefixtures("crashing_pillow")
def test_a_picture_that_ends_its_decoder_costs_itself_only() -> None:
    good = encoded(picture(90, 60), "JPEG")
    ends = {
        b"abort": "signal 6 (SIGABRT)",
        b"kill": "signal 9 (SIGKILL)",
        b"exit": "exit code 7",
    }
    with decoder_process(Resize(64)) as decoder:
        expected = decoder(io.BytesIO(good))
        assert expected[-1] is None
        for word, how in ends.items():
            answer = decoder(io.BytesIO(b"CRASHING" + word))
            assert answer == (*(None,) * 5, f"crashed_decoder: {how}")
            assert decoder(io.BytesIO(good)) == expected
        # What does not happen again was no fault of the picture.
        assert str(decoder(io.BytesIO(b"CRASHINGonce"))[-1]).startswith("corrupt_image")
        decoder.check()


@pytest.mark.usefixtures("crashing_pillow")
def test_a_machine_without_memory_is_no_fault_of_the_picture() -> None:
    with decoder_process(Resize(64)) as decoder:
        decoder(io.BytesIO(b"CRASHINGmemory"))
        with pytest.raises(WorkerError, match="not enough memory"):
            decoder.check()


def test_a_decoder_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "__name__", "capfilt.no_such_module")
    with decoder_process(Resize()) as decoder:
        for _ in range(2):  # img2dataset would pass over an exception
            assert decoder(io.BytesIO(b"x"))[0] is None
        with pytest.raises(WorkerError, match="does not start"):
            decoder.check()


def test_a_closed_decoder_leaves_no_process() -> None:
    decoder = DecoderProcess(Resize())
    decoder(io.BytesIO(b"x"))
    process = decoder._process
    assert process is not None
    decoder.close()
    assert process.returncode == 0
