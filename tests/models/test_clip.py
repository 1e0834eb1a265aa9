import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from capfilt.errors import ModelError
from capfilt.models.checkpoints import resolve_model
from capfilt.models.clip import ClipMatcher
from capfilt.models.compute.loading import Normaliser
from capfilt.models.families import ModelKind, model_kind
from capfilt.models.loaders import open_matcher
from capfilt.models.pixels import load_rgb
from capfilt.models.preprocessing import preprocessing_of
from capfilt.models.protocols import framing_of
from tests.models.tiny2 import SIDE, reference_pixels, save_clip, some_images

TEXTS = ["a red circle", "the DOG ( large ) 1", "small blue square left", "cat", "dog " * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def matcher(folder: Path) -> ClipMatcher:
    return ClipMatcher(resolve_model(str(folder), "matcher"))


@pytest.mark.parametrize("size", [(71, 113), (113, 71), (50, 50), (32, 200), (33, 32), (7, 9)])
def test_preprocessing_is_that_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    original = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    out = io.BytesIO()
    original.save(out, "PNG")
    normalise = Normaliser(
        resolve_model(str(folder), "matcher"), ModelKind.CLIP_MATCHER, "cpu", torch.float32
    )
    ours = normalise(torch.tensor(load_rgb(out.getvalue(), SIDE, "crop"))[None])
    theirs = CLIPImageProcessorPil.from_pretrained(folder)([original], return_tensors="pt")
    # One level of 255: the crop is cut from the source, so its weights differ in the last bit.
    assert (ours - theirs.pixel_values).abs().max() < 1.01 / 255 / 0.26


def test_a_picture_of_one_row_is_no_burden() -> None:
    out = io.BytesIO()
    Image.new("RGB", (60_000, 1), "red").save(out, "PNG")
    assert load_rgb(out.getvalue(), 224, "crop").shape == (224, 224, 3)


def test_similarities_are_those_of_transformers(folder: Path, matcher: ClipMatcher) -> None:
    images = some_images(3)
    itm, itc = matcher.match(images, [TEXTS] * 3)
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(TEXTS, truncation=True, max_length=30, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            pixel_values=reference_pixels(folder, images, clip=True),
        )
    expected = (found.image_embeds @ found.text_embeds.T).numpy()
    assert np.abs(np.array(itc) - expected).max() < 1e-5
    assert np.abs(matcher.embed(images) - found.image_embeds.numpy()).max() < 1e-5
    assert np.isnan(np.array(itm)).all()
    assert np.ptp(expected) > 0.05


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_neighbours_change_no_bit(matcher: ClipMatcher, order: list[int], size: int) -> None:
    images = some_images(12)
    texts = [[TEXTS[i % 5], TEXTS[(i * 3 + 1) % 5]] for i in range(12)]
    _, itc = matcher.match(images, texts)
    vectors = matcher.embed(images)
    for start in range(0, 12, size):
        part = order[start : start + size]
        fresh = [images[i].copy() for i in part]  # copies: nothing is found in a memo
        assert matcher.match(fresh, [texts[i] for i in part])[1] == [itc[i] for i in part]
        assert np.array_equal(matcher.embed(fresh), vectors[part])


def test_nothing_to_score_is_not_scored(matcher: ClipMatcher) -> None:
    _, itc = matcher.match(some_images(1), [[" ", "cat", ""]])
    assert [np.isnan(score) for score in itc[0]] == [True, False, True]
    assert matcher.match([], []) == ([], [])
    assert matcher.embed([]).shape == (0, 16)


def test_the_right_class_is_opened(folder: Path, tiny_pair: tuple[Path, Path]) -> None:
    assert model_kind(folder, "matcher") is ModelKind.CLIP_MATCHER
    opened = open_matcher(resolve_model(str(folder), "matcher"), "enc", "cpu", "fp32")
    assert type(opened) is ClipMatcher
    assert framing_of(opened) == "crop"
    blip = open_matcher(resolve_model(str(tiny_pair[1]), "matcher"), "enc", "cpu", "fp32")
    assert framing_of(blip) == "squash"
    with pytest.raises(ModelError, match="is a CLIPModel; as captioner"):
        resolve_model(str(folder), "captioner")


def test_other_preprocessing_is_refused(tmp_path: Path) -> None:
    crop = {"height": 24, "width": 24}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="crops a square"):
        preprocessing_of(tmp_path, ModelKind.CLIP_MATCHER)
