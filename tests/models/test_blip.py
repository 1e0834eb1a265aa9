import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from capfilt.errors import InputError, ModelError
from capfilt.models.blip import BlipCaptioner, BlipMatcher
from capfilt.models.checkpoints import resolve_model, share_weights
from capfilt.models.compute.loading import Normaliser
from capfilt.models.families import ModelKind
from capfilt.models.filter_text import normalise_for_filter
from capfilt.models.pixels import load_rgb
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Beam, CaptionerRecipe, Lengths, Nucleus

PROMPT = "a picture of "
TEXTS = ["a red circle", "the DOG! (large) #1", "small blue square left", "cat", "x " * 60]


def some_images(count: int, seed: int = 0, side: int = 32) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def captioner(tiny_pair: tuple[Path, Path]) -> BlipCaptioner:
    return captioner_of(tiny_pair[0])


@pytest.fixture(scope="module")
def matcher(tiny_pair: tuple[Path, Path]) -> BlipMatcher:
    return BlipMatcher(resolve_model(str(tiny_pair[1]), "matcher"), "enc")


_NUCLEUS = Nucleus()


def captioner_of(
    folder: Path, decoding: Nucleus | Beam = _NUCLEUS, k: int = 2, seed: int = 5
) -> BlipCaptioner:
    return BlipCaptioner(
        CaptionerRecipe(
            resolve_model(str(folder), "captioner"),
            decoding=decoding,
            lengths=Lengths(),
            prompt=PROMPT,
            num_captions=k,
            seed=seed,
        )
    )


def reference_pixels(folder: Path, images: list[Pixels]) -> torch.Tensor:
    processor = BlipImageProcessorPil.from_pretrained(folder)
    found = processor([Image.fromarray(i) for i in images], return_tensors="pt")
    pixels: torch.Tensor = found.pixel_values
    return pixels


def test_preprocessing_is_that_of_transformers(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    original = Image.fromarray(rng.integers(0, 255, (71, 113, 3), dtype=np.uint8))
    original.save(tmp_path / "x.png")
    ref = resolve_model(str(tiny_pair[0]), "captioner")
    ours = Normaliser(ref, ModelKind.BLIP_CAPTIONER, "cpu", torch.float32)(
        torch.tensor(load_rgb((tmp_path / "x.png").read_bytes(), 32))[None]
    )
    processor = BlipImageProcessorPil.from_pretrained(tiny_pair[0])
    theirs = processor([original], return_tensors="pt").pixel_values
    assert (ours - theirs).abs().max() < 1e-5


def test_greedy_captions_are_those_of_transformers(tiny_pair: tuple[Path, Path]) -> None:
    folder, images = tiny_pair[0], some_images(5)
    ours = captioner_of(folder, Beam(1), k=1).caption(images, list("abcde"))
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    ids = model.generate(
        pixel_values=reference_pixels(folder, images),
        input_ids=prompt.repeat(5, 1),
        do_sample=False,
        num_beams=1,
        min_length=5,
        max_length=20,
    )
    cut = prompt.shape[1] - 1
    assert [[tokenizer.decode(row[cut:], skip_special_tokens=True).strip()] for row in ids] == ours


def test_nearly_greedy_sampling_is_greedy(tiny_pair: tuple[Path, Path]) -> None:
    images, keys = some_images(5), list("abcde")
    sharp = captioner_of(tiny_pair[0], Nucleus(top_p=1e-9, repetition_penalty=1.0), k=1)
    greedy = captioner_of(tiny_pair[0], Beam(1), k=1)
    assert sharp.caption(images, keys) == greedy.caption(images, keys)


def test_itm_and_itc_are_those_of_transformers(
    tiny_pair: tuple[Path, Path], matcher: BlipMatcher
) -> None:
    folder, images = tiny_pair[1], some_images(3)
    itm, itc = matcher.match(images, [TEXTS] * 3)
    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = reference_pixels(folder, images)
    for place, text in enumerate(TEXTS):
        encoded = tokenizer(
            normalise_for_filter(text), truncation=True, max_length=35, return_tensors="pt"
        )
        ids = encoded.input_ids.repeat(3, 1)
        with torch.inference_mode():
            cosine = model(ids, pixels, use_itm_head=False).itm_score[:, 0]
            ids[:, 0] = tokenizer.convert_tokens_to_ids("[ENC]")
            p = model(ids, pixels).itm_score.softmax(-1)[:, 1]
        for image in range(3):
            assert itm[image][place] == pytest.approx(p[image].item(), abs=1e-5)
            assert itc[image][place] == pytest.approx(cosine[image].item(), abs=1e-5)


def test_cls_at_position_0_scores_otherwise(
    tiny_pair: tuple[Path, Path], matcher: BlipMatcher
) -> None:
    ref = resolve_model(str(tiny_pair[1]), "matcher")
    images = some_images(2)
    itm, itc = matcher.match(images, [TEXTS] * 2)
    cls_itm, cls_itc = BlipMatcher(ref, "cls").match(images, [TEXTS] * 2)
    assert itm != cls_itm
    assert itc == cls_itc


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(20)), st.integers(1, 20))
def test_neighbours_change_no_bit(
    captioner: BlipCaptioner, matcher: BlipMatcher, order: list[int], size: int
) -> None:
    images, keys = some_images(20), [f"k{i}" for i in range(20)]
    texts = [[TEXTS[i % 5], TEXTS[(i * 3 + 1) % 5]] for i in range(20)]
    whole = captioner.caption(images, keys)
    scores = matcher.match(images, texts)
    vectors = matcher.embed(images)
    for start in range(0, 20, size):
        part = order[start : start + size]
        fresh = [images[i].copy() for i in part]  # copies: nothing is found in a memo
        assert captioner.caption(fresh, [keys[i] for i in part]) == [whole[i] for i in part]
        itm, itc = matcher.match(fresh, [texts[i] for i in part])
        assert itm == [scores[0][i] for i in part]
        assert itc == [scores[1][i] for i in part]
        assert np.array_equal(matcher.embed(fresh), vectors[part])


def test_captions_depend_on_seed_key_and_number(tiny_pair: tuple[Path, Path]) -> None:
    image = some_images(1)
    first = captioner_of(tiny_pair[0], k=3).caption(image, ["a"])[0]
    assert len(set(first)) == 3
    assert captioner_of(tiny_pair[0], k=3).caption(image, ["b"])[0] != first
    assert captioner_of(tiny_pair[0], k=3, seed=6).caption(image, ["a"])[0] != first
    assert captioner_of(tiny_pair[0], k=3).caption(image, ["a"])[0] == first


def test_beams_give_k_captions(tiny_pair: tuple[Path, Path]) -> None:
    captions = captioner_of(tiny_pair[0], Beam(4), k=3).caption(some_images(2), ["a", "b"])
    assert [len(set(own)) for own in captions] == [3, 3]


def test_a_text_of_which_nothing_is_left_is_not_scored(matcher: BlipMatcher) -> None:
    itm, itc = matcher.match(some_images(1), [["!!!", "cat", ""]])
    assert [np.isnan(score) for score in itm[0]] == [True, False, True]
    assert [np.isnan(score) for score in itc[0]] == [True, False, True]
    assert matcher.match(some_images(2), [[], []]) == ([[], []], [[], []])


def test_no_images_are_no_work(captioner: BlipCaptioner, matcher: BlipMatcher) -> None:
    assert captioner.caption([], []) == []
    assert matcher.match([], []) == ([], [])
    assert matcher.embed([]).shape == (0, 16)


def test_a_checkpoint_that_would_score_at_random_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "matcher"
    shutil.copytree(tiny_pair[1], broken)
    shutil.copy(tiny_pair[0] / "model.safetensors", broken / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing \(.*unexpected \(text_decoder"):
        BlipMatcher(resolve_model(str(broken), "matcher"), "enc")


def test_wrong_models_are_told_before_any_loading(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="BlipForImageTextRetrieval is needed"):
        resolve_model(str(tiny_pair[0]), "matcher")
    with pytest.raises(ModelError, match="there is no folder"):
        resolve_model(str(tmp_path / "none"), "matcher")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        resolve_model(str(tmp_path), "captioner")
    with pytest.raises(ModelError, match="cannot get 'no/such-model' from the hub"):
        resolve_model("no/such-model", "captioner")
    with pytest.raises(InputError, match="top_p"):
        Nucleus(top_p=0.0)


def test_identity_is_the_files_not_the_place(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair[0], copy)
    ref = resolve_model(str(tiny_pair[0]), "captioner")
    assert resolve_model(str(copy), "captioner").digest == ref.digest
    (copy / "README.md").write_text("about")
    assert resolve_model(str(copy), "captioner").digest == ref.digest
    config = copy / "config.json"
    config.write_text(config.read_text().replace("{", "{ ", 1))
    assert resolve_model(str(copy), "captioner").digest != ref.digest


def test_shared_weights_are_noticed(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    captioner, matcher = (
        resolve_model(str(tiny_pair[0]), "captioner"),
        resolve_model(str(tiny_pair[1]), "matcher"),
    )
    assert not share_weights(captioner, matcher)
    model = BlipForImageTextRetrieval.from_pretrained(tiny_pair[1])
    vision = BlipForConditionalGeneration.from_pretrained(tiny_pair[0]).vision_model
    model.vision_model.load_state_dict(vision.state_dict())
    shutil.copytree(tiny_pair[1], tmp_path / "shared")
    model.save_pretrained(tmp_path / "shared")
    assert share_weights(captioner, resolve_model(str(tmp_path / "shared"), "matcher"))


def test_normalisation_for_the_filter() -> None:
    assert normalise_for_filter('A "Red" (circle)! #1:  x;y~z.') == "a red circle 1 x y z"
    assert normalise_for_filter(" ".join(["w"] * 50)).split() == ["w"] * 30
