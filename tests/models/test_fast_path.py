"""Our forward pass against transformers' own, on the embedded models and at base size."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from capfilt.errors import ModelError
from capfilt.models.blip import BlipCaptioner, BlipMatcher
from capfilt.models.checkpoints import resolve_model
from capfilt.models.compute.decoder import Decoder
from capfilt.models.compute.packed_linear import Dense, fast_bf16_cpu
from capfilt.models.compute.text import TextTower, keys_and_values
from capfilt.models.compute.tiles import Tiled, TileSizes, fixed_compute
from capfilt.models.compute.uniforms import uniforms
from capfilt.models.compute.vision import VisionTower
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Beam, CaptionerRecipe, Lengths, Nucleus
from capfilt.simweb.falsehoods import rng_of
from capfilt.simweb.grammar import describe
from pipelines.experiments.quality import MODELS, PROMPT
from tests.benchmarks.checkpoints import BASE, configuration
from tests.stages.pictures import make_pictures

GREEDY = Nucleus(top_k=1, repetition_penalty=1.0)


class Recorder(Decoder):
    """A decoder that remembers its logits, a tensor (slots, K, vocabulary) a step."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        found = super().logits(x)
        self.seen = [*getattr(self, "seen", []), found]
        return found


@dataclass(frozen=True)
class Pair:
    """A captioner and a matcher of transformers' classes, with pixels for them."""

    captioner: Any
    matcher: Any
    pixels: torch.Tensor
    prompt: list[int]
    end: int
    first: int  # [ENC]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embedded() -> Pair:
    """Return the shipped models and pictures that they were made for."""
    captioner = BlipForConditionalGeneration.from_pretrained(MODELS / "captioner").eval()
    matcher = BlipForImageTextRetrieval.from_pretrained(MODELS / "matcher").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "captioner")
    prompt = [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False).input_ids]
    pictures = [Image.fromarray(image) for image in web_images(6)]
    processor = BlipImageProcessorPil.from_pretrained(MODELS / "captioner")
    pixels = processor(pictures, return_tensors="pt").pixel_values
    enc = tokenizer.get_vocab()["[ENC]"]
    return Pair(captioner, matcher, pixels, prompt, tokenizer.sep_token_id, enc)


def base() -> Pair:
    """Return models of BLIP-base's size with random weights, and noise to look at."""
    torch.manual_seed(0)
    config = configuration(BASE)
    captioner = BlipForConditionalGeneration(config).eval()
    matcher = BlipForImageTextRetrieval(config).eval()
    side = config.vision_config.image_size
    text = config.text_config
    pixels = torch.randn(2, 3, side, side)
    prompt = [text.bos_token_id, 5, 6, 7]
    return Pair(captioner, matcher, pixels, prompt, text.sep_token_id, text.bos_token_id + 1)


@pytest.fixture(scope="module", params=[embedded, base], ids=["embedded", "base"])
def pair(request: pytest.FixtureRequest) -> Pair:
    made: Pair = request.param()
    return made


def web_images(count: int, seed: int = 5) -> list[Pixels]:
    return list(make_pictures(seed, count, 1).pixels)


def noise_of(images: int, captions: int, steps: int) -> torch.Tensor:
    return torch.rand(
        (images, captions, steps), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )


@torch.inference_mode()
def test_vision_states_are_those_of_transformers(pair: Pair) -> None:
    ours = VisionTower(pair.captioner.vision_model)(pair.pixels)
    theirs = pair.captioner.vision_model(pair.pixels).last_hidden_state
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2e-5


@torch.inference_mode()
def test_decoder_logits_are_those_of_transformers_at_every_step(pair: Pair) -> None:
    images, captions, lengths = len(pair.pixels), 3, Lengths(12, 12)
    states = pair.captioner.vision_model(pair.pixels).last_hidden_state
    decoder = Recorder(
        pair.captioner.text_decoder, slots=images, enter=images, tokens=states.shape[1]
    )
    steps = lengths.max_length - len(pair.prompt)
    noise = noise_of(images, captions, steps)
    ids = decoder.sample(lambda _: states, noise, pair.prompt, Nucleus(), lengths, pair.end)
    assert len(decoder.seen) == steps
    rows = ids.flatten(0, 1)
    theirs = pair.captioner.text_decoder(
        input_ids=rows,
        encoder_hidden_states=states.repeat_interleave(captions, 0),
        is_decoder=True,
    ).logits
    for step, ours in enumerate(decoder.seen):
        expected = theirs[:, len(pair.prompt) - 1 + step]
        difference = (ours.flatten(0, 1) - expected).abs().max()
        assert difference < 1e-4, f"step {step}"
    assert len({tuple(row) for row in rows.tolist()}) > images  # captions differ from one another


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(pair: Pair) -> None:
    lengths = Lengths(5, 16)
    tower = VisionTower(pair.captioner.vision_model)
    decoder = Decoder(pair.captioner.text_decoder, slots=2, enter=1, tokens=tower.tokens)
    noise = noise_of(len(pair.pixels), 1, lengths.max_length - len(pair.prompt))
    ours = decoder.sample(
        lambda chosen: tower(pair.pixels[list(chosen)]),
        noise,
        pair.prompt,
        GREEDY,
        lengths,
        pair.end,
    )[:, 0]
    # transformers' generate puts the start token at 0 and cuts the last token of its prompt.
    theirs = pair.captioner.generate(
        pixel_values=pair.pixels,
        input_ids=torch.tensor([[*pair.prompt, pair.end]]).repeat(len(pair.pixels), 1),
        do_sample=False,
        num_beams=1,
        min_length=lengths.min_length,
        max_length=lengths.max_length,
    )
    for own, other in zip(ours.tolist(), theirs.tolist(), strict=True):
        assert until(own, pair.end, pair.prompt) == until(other, pair.end, pair.prompt)


def until(ids: Sequence[int], end: int, prompt: Sequence[int]) -> list[int]:
    """Return what stands between the prompt and the end."""
    written = list(ids)[len(prompt) :]
    return written[: written.index(end)] if end in written else written


def test_four_captions_of_an_image_are_those_that_four_runs_of_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image leaves its slot when its last caption has ended, not its first."""
    ref, images = resolve_model(str(MODELS / "captioner"), "captioner"), web_images(12)
    keys = [f"key {n}" for n in range(len(images))]
    recipe = CaptionerRecipe(ref, num_captions=4, lengths=Lengths(3, 20), prompt=PROMPT, seed=3)
    together = BlipCaptioner(recipe).caption(images, keys)
    alone = BlipCaptioner(dataclasses.replace(recipe, num_captions=1))
    for number in range(4):
        own = functools.partial(noise_of_one, number)
        monkeypatch.setattr("capfilt.models.blip.uniforms", own)
        written = alone.caption(images, keys)
        assert [captions[number] for captions in together] == [text for [text] in written]
    lengths = [{len(text.split()) for text in captions} for captions in together]
    assert sum(len(found) > 1 for found in lengths) > 6  # captions that end apart


def noise_of_one(
    number: int, seed: int, keys: Sequence[str], captions: int, steps: int
) -> npt.NDArray[np.float64]:
    """Return the noise of the caption `number` alone."""
    assert captions == 1
    return uniforms(seed, keys, 4, steps)[:, number : number + 1]


def test_beams_are_those_of_transformers() -> None:
    images = web_images(4)
    ref = resolve_model(str(MODELS / "captioner"), "captioner")
    ours = BlipCaptioner(
        CaptionerRecipe(
            ref, decoding=Beam(3), lengths=Lengths(), prompt=PROMPT, num_captions=2, seed=0
        )
    ).caption(images, list("abcd"))
    model = BlipForConditionalGeneration.from_pretrained(ref.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(ref.path)
    processor = BlipImageProcessorPil.from_pretrained(ref.path)
    prompt = tokenizer([PROMPT] * 4, return_tensors="pt").input_ids
    ids = model.generate(
        pixel_values=processor(
            [Image.fromarray(i) for i in images], return_tensors="pt"
        ).pixel_values,
        input_ids=prompt,
        num_beams=3,
        num_return_sequences=2,
        min_length=5,
        max_length=20,
    )
    texts = tokenizer.batch_decode(ids[:, prompt.shape[1] - 1 :], skip_special_tokens=True)
    assert [text for own in ours for text in own] == [text.strip() for text in texts]


@torch.inference_mode()
def test_itm_and_itc_are_those_of_transformers(pair: Pair) -> None:
    tower, text = VisionTower(pair.matcher.vision_model), TextTower(pair.matcher.text_encoder)
    states = tower(pair.pixels)
    ids = torch.randint(7, 60, (len(pair.pixels), 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = pair.first
    ids[0, 8:] = 0  # padded
    mask = (ids != 0)[:, None, None]
    x = text.begin(ids)
    for number, layer in enumerate(text.layers):
        keys = layer.image_keys(states)

        def look(q: torch.Tensor, held: Any = keys) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, *keys_and_values(held))

        x = text.bidirectional(number, x, mask, look)
    ours = pair.matcher.itm_head(x[:, 0])
    attention = (ids != 0).long()
    theirs = pair.matcher(ids, pair.pixels, attention_mask=attention).itm_score
    assert (ours - theirs).abs().max() < 2e-5
    plain = text.begin(ids)
    for number in range(len(text.layers)):
        plain = text.bidirectional(number, plain, mask, None)
    cosine = (
        torch.nn.functional.normalize(pair.matcher.text_proj(plain[:, 0]), dim=-1)
        @ torch.nn.functional.normalize(pair.matcher.vision_proj(states[:, 0]), dim=-1).T
    )
    expected = pair.matcher(
        ids, pair.pixels, attention_mask=attention, use_itm_head=False
    ).itm_score
    assert (cosine.T - expected).abs().max() < 2e-5


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(11)), st.integers(1, 3), st.integers(1, 4))
def test_order_and_moment_of_entry_change_nothing(order: list[int], enter: int, more: int) -> None:
    model = BlipForConditionalGeneration.from_pretrained(MODELS / "captioner").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "captioner")
    end = tokenizer.sep_token_id
    prompt = [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False).input_ids]
    states = torch.from_numpy(np.random.default_rng(4).normal(size=(11, 65, 128))).float()
    noise = noise_of(11, 2, Lengths().max_length - len(prompt))
    # One number of slots is one compute shape; with another, last bits may differ.
    decoder = Decoder(model.text_decoder, slots=enter + more, enter=enter, tokens=65)

    def written(images: Sequence[int]) -> list[list[list[int]]]:
        def give(chosen: Sequence[int]) -> torch.Tensor:
            seated = [images[number] for number in chosen]
            return states[seated + seated[:1] * (enter - len(seated))]

        ids = decoder.sample(give, noise[list(images)], prompt, Nucleus(), Lengths(), end)
        return [[until(own, end, prompt) for own in each] for each in ids.tolist()]

    with fixed_compute():
        together = written(order)
        assert together == [written([image])[0] for image in order]


@pytest.mark.skipif(not fast_bf16_cpu(), reason="this processor has no bf16 matrix units")
def test_packed_weights_multiply_as_plain_ones() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 80).bfloat16()
    x = torch.randn(3, 7, 96).bfloat16()
    with torch.inference_mode():
        ours, theirs = Dense.of(layer)(x), layer(x)
    assert (ours.float() - theirs.float()).abs().max() < 0.02
    assert ours.shape == theirs.shape


def test_several_layers_in_one_give_their_outputs_side_by_side() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(12, size) for size in (4, 5, 6)]
    x = torch.randn(2, 3, 12)
    with torch.inference_mode():
        together = Dense.of(*layers)(x)
        expected = torch.cat([layer(x) for layer in layers], dim=-1)
    assert torch.allclose(together, expected, atol=1e-6)


def test_tile_sizes_depend_on_the_model_and_the_kind_of_device() -> None:
    assert TileSizes.of(577, 768, "cpu") == TileSizes(images=4, slots=16, texts=16)
    assert TileSizes.of(65, 128, "cpu") == TileSizes(images=36, slots=64, texts=64)
    assert TileSizes.of(577, 768, "cuda:1") == TileSizes(images=34, slots=272, texts=256)
    assert TileSizes.of(10**6, 768, "cpu").images == 1


@pytest.mark.skipif(not fast_bf16_cpu(), reason="this processor has no bf16 matrix units")
def test_half_precision_decides_nearly_always_alike() -> None:
    pictures = make_pictures(9, 150, 1)
    texts = [
        [
            describe(pictures.scenes[(place + shift) % 150], rng_of("text", place))
            for shift in (0, 1)
        ]
        for place in range(150)
    ]
    ref = resolve_model(str(MODELS / "matcher"), "matcher")
    images = list(pictures.pixels)
    full, half = (
        np.array(BlipMatcher(ref, "enc", precision=precision).match(images, texts)[0])
        for precision in ("fp32", "bf16")
    )
    assert np.abs(full - half).max() < 0.1
    assert ((full >= 0.5) != (half >= 0.5)).mean() < 0.01


def test_tiles_shrink_until_they_fit() -> None:
    ref = resolve_model(str(MODELS / "matcher"), "matcher")
    images, texts = web_images(10), [["a red star", "a blue ring"]] * 10
    expected = BlipMatcher(ref, "enc").match(images, texts)
    tight = BlipMatcher(ref, "enc")
    whole: VisionTower = tight._vision

    def small(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 3:  # the card of somebody else
            raise torch.OutOfMemoryError
        return whole(pixels)

    tight._vision = small  # type: ignore[assignment]  # memory that runs out
    found = tight.match(images, texts)
    assert tight.sizes.images in {2, 3}
    assert np.allclose(found, expected, atol=1e-5)
    captioner = BlipCaptioner(
        CaptionerRecipe(
            resolve_model(str(MODELS / "captioner"), "captioner"),
            decoding=Nucleus(),
            lengths=Lengths(),
            prompt=PROMPT,
            num_captions=2,
            seed=0,
        )
    )
    keys = [str(n) for n in range(10)]
    written = captioner.caption(images, keys)
    tower: VisionTower = captioner._vision

    def smaller(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError
        return tower(pixels)

    captioner._vision = smaller  # type: ignore[assignment]  # memory that runs out
    assert captioner.caption(images, keys) == written
    assert captioner.sizes.images in {2, 3}


def test_a_device_without_any_room_is_told() -> None:
    def never() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match="do not fit into the device's memory"):
        Tiled(TileSizes(4, 4, 4), "fp32").fitting(never)
