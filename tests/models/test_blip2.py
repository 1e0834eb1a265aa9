import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from capfilt.errors import ModelError
from capfilt.models.blip2 import Blip2Captioner, Blip2Matcher
from capfilt.models.checkpoints import resolve_model
from capfilt.models.compute.language import Prompt, _DecoderOnly, _EncoderDecoder, prompted
from capfilt.models.families import ModelKind, model_kind
from capfilt.models.filter_text import normalise_for_filter
from capfilt.models.loaders import open_captioner, open_matcher
from capfilt.models.recipe import Beam, CaptionerRecipe, Lengths, ModelRef, Nucleus
from tests.models.tiny2 import (
    IMAGE,
    OPT,
    QUERIES,
    T5,
    reference_pixels,
    save_blip2_captioner,
    save_blip2_matcher,
    some_images,
)

PROMPT = "a picture of "
TEXTS = ["a red circle", "the DOG! (large) #1", "small blue square left", "cat", "x " * 60]
TEXT_MODELS = {"opt": OPT, "t5": T5}


@pytest.fixture(scope="module", params=TEXT_MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("blip2") / request.param
    return save_blip2_captioner(place, TEXT_MODELS[request.param])


@pytest.fixture(scope="module")
def matcher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip2_matcher(tmp_path_factory.mktemp("blip2") / "matcher")


@pytest.fixture(scope="module")
def matcher(matcher_folder: Path) -> Blip2Matcher:
    return Blip2Matcher(resolve_model(str(matcher_folder), "matcher"))


def captioner_of(
    folder: Path, decoding: Nucleus | Beam, k: int = 2, seed: int = 5, prompt: str = PROMPT
) -> Blip2Captioner:
    return Blip2Captioner(
        CaptionerRecipe(
            resolve_model(str(folder), "captioner"),
            decoding=decoding,
            lengths=Lengths(),
            prompt=prompt,
            num_captions=k,
            seed=seed,
        )
    )


def reference_captions(
    folder: Path, count: int, beams: int = 1, k: int = 1, penalty: float = 1.0
) -> list[list[str]]:
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = tokenizer(PROMPT.strip()).input_ids
    ids = torch.tensor([[IMAGE] * QUERIES + own]).repeat(count, 1)
    found = model.generate(
        pixel_values=reference_pixels(folder, some_images(count)),
        input_ids=ids,
        do_sample=False,
        num_beams=beams,
        num_return_sequences=k,
        repetition_penalty=penalty,
        min_new_tokens=max(0, 5 - len(own)),
        max_new_tokens=20 - len(own),
    )
    cut = 1 if model.language_model.config.is_encoder_decoder else ids.shape[1]
    texts = [tokenizer.decode(row[cut:], skip_special_tokens=True).strip() for row in found]
    return [texts[at : at + k] for at in range(0, len(texts), k)]


def test_greedy_captions_are_those_of_transformers(folder: Path) -> None:
    found = captioner_of(folder, Beam(1), k=1).caption(some_images(5), list("abcde"))
    assert found == reference_captions(folder, 5)
    assert len({text for (text,) in found}) > 1


def test_sampling_without_choice_is_greedy(folder: Path) -> None:
    """So the loop over the shared cache computes what transformers computes at every step."""
    sharp = captioner_of(folder, Nucleus(top_p=1e-9, repetition_penalty=1.0), k=3)
    found = sharp.caption(some_images(11), list("abcdefghijk"))
    assert found == [own * 3 for own in reference_captions(folder, 11)]


def test_sampling_without_choice_is_greedy_with_a_penalty(folder: Path) -> None:
    sharp = captioner_of(folder, Nucleus(top_p=1e-9, repetition_penalty=1.3), k=1)
    found = sharp.caption(some_images(5), list("abcde"))
    assert found == reference_captions(folder, 5, penalty=1.3)
    assert found != reference_captions(folder, 5)


def test_beams_are_those_of_transformers(folder: Path) -> None:
    found = captioner_of(folder, Beam(4), k=3).caption(some_images(3), list("abc"))
    assert found == reference_captions(folder, 3, beams=4, k=3)


def test_scores_of_every_step_are_those_of_transformers(folder: Path) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval().language_model
    seq2seq = bool(model.config.is_encoder_decoder)
    torch.manual_seed(0)
    queries, prompt = torch.randn(2, QUERIES, 32), Prompt((1, 9, 8), IMAGE)
    fed = torch.randint(5, 40, (6, 7))
    with torch.inference_mode():
        writing = (_EncoderDecoder if seq2seq else _DecoderOnly)(model, queries, prompt, 3)
        ours = [writing.first(), *(writing.next(fed[:, at]) for at in range(7))]
        embedded = prompted(model, queries.repeat_interleave(3, 0), prompt)[0]
        if seq2seq:
            start = torch.full((6, 1), model.config.decoder_start_token_id)
            inputs = torch.cat([start, fed], dim=1)
            logits = model(inputs_embeds=embedded, decoder_input_ids=inputs).logits
        else:
            words = model.get_input_embeddings()(fed)
            logits = model(inputs_embeds=torch.cat([embedded, words], dim=1)).logits[:, -8:]
    assert (torch.stack(ours, dim=1) - logits).abs().max() < 1e-5


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_neighbours_change_no_caption(folder: Path, order: list[int], size: int) -> None:
    captioner = _opened(folder)
    images, keys = some_images(12), [f"k{i}" for i in range(12)]
    whole = captioner.caption(images, keys)
    assert len({text for own in whole for text in own}) > 12
    for start in range(0, 12, size):
        part = order[start : start + size]
        found = captioner.caption([images[i] for i in part], [keys[i] for i in part])
        assert found == [whole[i] for i in part]


_OPENED: dict[Path, Blip2Captioner] = {}


def _opened(folder: Path) -> Blip2Captioner:
    if folder not in _OPENED:
        _OPENED[folder] = captioner_of(folder, Nucleus())
    return _OPENED[folder]


def test_captions_depend_on_seed_key_and_number(folder: Path) -> None:
    image = some_images(1)
    first = captioner_of(folder, Nucleus(), k=3).caption(image, ["a"])[0]
    assert len(set(first)) == 3
    assert captioner_of(folder, Nucleus(), k=3).caption(image, ["b"])[0] != first
    assert captioner_of(folder, Nucleus(), k=3, seed=6).caption(image, ["a"])[0] != first
    # More captions leave those before them as they are: an image's K share nothing but the image.
    assert captioner_of(folder, Nucleus(), k=5).caption(image, ["a"])[0][:3] == first


def test_a_prompt_that_leaves_no_room_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="the prompt takes"):
        captioner_of(folder, Nucleus(), prompt="red " * 30)
    assert captioner_of(folder, Nucleus()).caption([], []) == []


def test_itm_and_itc_are_those_of_transformers(matcher_folder: Path, matcher: Blip2Matcher) -> None:
    images = some_images(3)
    itm, itc = matcher.match(images, [TEXTS] * 3)
    model = Blip2ForImageTextRetrieval.from_pretrained(matcher_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(matcher_folder)
    pixels = reference_pixels(matcher_folder, images)
    for place, text in enumerate(TEXTS):
        encoded = tokenizer(
            normalise_for_filter(text), truncation=True, max_length=32, return_tensors="pt"
        )
        ids, mask = encoded.input_ids, encoded.attention_mask
        for image in range(3):
            one = {"pixel_values": pixels[image : image + 1], "input_ids": ids}
            with torch.inference_mode():
                p = model(**one, attention_mask=mask, use_image_text_matching_head=True)
                s = model(**one, attention_mask=mask)
            expected = p.logits_per_image.softmax(dim=1)[0, 1].item()
            assert itm[image][place] == pytest.approx(expected, abs=1e-5)
            assert itc[image][place] == pytest.approx(s.logits_per_image.item(), abs=1e-5)
    assert len({round(p, 4) for own in itm for p in own}) > 5


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_neighbours_change_no_score(matcher: Blip2Matcher, order: list[int], size: int) -> None:
    images = some_images(12)
    texts = [[TEXTS[i % 5], TEXTS[(i * 3 + 1) % 5]] for i in range(12)]
    itm, itc = matcher.match(images, texts)
    vectors = matcher.embed(images)
    for start in range(0, 12, size):
        part = order[start : start + size]
        fresh = [images[i].copy() for i in part]  # copies: nothing is found in a memo
        found = matcher.match(fresh, [texts[i] for i in part])
        assert found == ([itm[i] for i in part], [itc[i] for i in part])
        assert np.array_equal(matcher.embed(fresh), vectors[part])


def test_embeddings_have_length_one_and_tell_images_apart(matcher: Blip2Matcher) -> None:
    vectors = matcher.embed(some_images(4))
    assert vectors.shape == (4, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors @ vectors.T)[0, 1:].max() < 0.9999
    assert matcher.embed([]).shape == (0, 16)


def test_a_text_of_which_nothing_is_left_is_not_scored(matcher: Blip2Matcher) -> None:
    itm, itc = matcher.match(some_images(1), [["!!!", "cat", ""]])
    assert [np.isnan(score) for score in itm[0]] == [True, False, True]
    assert [np.isnan(score) for score in itc[0]] == [True, False, True]
    assert matcher.match(some_images(2), [[], []]) == ([[], []], [[], []])


def test_the_kind_is_found_from_the_config(
    folder: Path, matcher_folder: Path, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert model_kind(folder, "captioner") is ModelKind.BLIP2_CAPTIONER
    assert model_kind(matcher_folder, "matcher") is ModelKind.BLIP2_MATCHER
    assert model_kind(tiny_pair[0], "captioner") is ModelKind.BLIP_CAPTIONER
    assert model_kind(tiny_pair[1], "matcher") is ModelKind.BLIP_MATCHER
    for wrong, role in ((folder, "matcher"), (matcher_folder, "captioner")):
        with pytest.raises(ModelError, match=r"is a Blip2For.* is needed"):
            resolve_model(str(wrong), "matcher" if role == "matcher" else "captioner")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
    assert model_kind(tmp_path, "matcher") is ModelKind.BLIP2_MATCHER
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ModelError, match="is a llava; as captioner one of"):
        model_kind(tmp_path, "captioner")


def test_the_right_class_is_opened(folder: Path, matcher_folder: Path) -> None:
    captioner = open_captioner(
        CaptionerRecipe(
            resolve_model(str(folder), "captioner"),
            decoding=Nucleus(),
            lengths=Lengths(),
            prompt=PROMPT,
            num_captions=1,
            seed=0,
        )
    )
    assert type(captioner) is Blip2Captioner
    ref = resolve_model(str(matcher_folder), "matcher")
    assert type(open_matcher(ref, "enc", "cpu", "fp32")) is Blip2Matcher
    with pytest.raises(ModelError, match="as matcher one of"):
        open_matcher(ModelRef("0", "x", str(folder)), "enc", "cpu", "fp32")


def test_bf16_keeps_the_queries_at_fp32(folder: Path, matcher_folder: Path) -> None:
    captioner = Blip2Captioner(
        CaptionerRecipe(
            resolve_model(str(folder), "captioner"),
            decoding=Nucleus(),
            lengths=Lengths(),
            prompt=PROMPT,
            num_captions=2,
            seed=0,
            precision="bf16",
        )
    )
    assert captioner._model.qformer.dtype == torch.float32
    assert captioner._model.language_model.dtype == torch.bfloat16
    assert [len(own) for own in captioner.caption(some_images(2), ["a", "b"])] == [2, 2]
    matcher = Blip2Matcher(resolve_model(str(matcher_folder), "matcher"), precision="bf16")
    itm, _ = matcher.match(some_images(1), [["a red circle"]])
    whole, _ = Blip2Matcher(resolve_model(str(matcher_folder), "matcher")).match(
        some_images(1), [["a red circle"]]
    )
    assert itm[0][0] == pytest.approx(whole[0][0], abs=0.05)
