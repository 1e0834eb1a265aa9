"""The embedded models, their vocabulary, how they are judged, and a training of a few steps."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from capfilt.demo import train as training
from capfilt.demo import vocab
from capfilt.demo.grammar import describe, facts_true
from capfilt.demo.pairs import batches, false_text, make_pictures
from capfilt.demo.quality import MODELS, PROMPT, measure
from capfilt.demo.scenes import sample_scene
from capfilt.demo.train import QUICK, Schedule, caption_loss, pixels_of, train
from capfilt.errors import InputError

TINY = replace(
    QUICK,
    scenes=120,
    single_steps=24,
    pretrain_steps=8,
    captioner_steps=4,
    filter_steps=12,
    batch=8,
    captions_per_image=2,
)
CLASSES = {"captioner": BlipForConditionalGeneration, "matcher": BlipForImageTextRetrieval}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, training.Losses]]:
    """Return the folder of a training of some fifty steps, and its losses."""
    out = tmp_path_factory.mktemp("trained")
    return out, train(TINY, out, threads=1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return vocab.build_tokenizer()


# The shipped models


@pytest.mark.parametrize("role", CLASSES)
def test_shipped_models_load_whole_by_plain_from_pretrained(role: str) -> None:
    model, info = CLASSES[role].from_pretrained(MODELS / role, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(MODELS / role)
    text = model.config.text_config
    assert text.vocab_size == len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(
        [text.bos_token_id, text.eos_token_id, text.pad_token_id]
    )
    assert tokens == ["[DEC]", "[SEP]", "[PAD]"]
    processor = BlipImageProcessorPil.from_pretrained(MODELS / role)
    assert dict(processor.size) == {"height": 64, "width": 64}
    assert model.config.vision_config.image_size == 64


def test_shipped_models_are_small() -> None:
    weights = [MODELS / role / "model.safetensors" for role in CLASSES]
    assert sum(file.stat().st_size for file in weights) <= 12e6


def test_shipped_models_are_as_good_as_their_quality_file_says() -> None:
    stated = json.loads((MODELS / "quality.json").read_text(encoding="utf-8"))["quality"]
    found = measure(MODELS, scenes=200, seed=77)
    # 200 scenes: one standard deviation of a share near 0.9 is 0.02.
    assert found.greedy_true > stated["greedy_true"] - 0.08
    assert found.nucleus_true > stated["nucleus_true"] - 0.12
    assert found.auc > stated["auc"] - 0.03
    assert found.precision > stated["precision"] - 0.08
    assert found.nucleus_true_kept > stated["nucleus_true_kept"] - 0.08


# Vocabulary


def test_special_tokens_have_their_ids(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(range(7)) == list(vocab.SPECIAL)
    assert tokenizer("a red star").input_ids[0] == vocab.CLS
    assert tokenizer("a red star").input_ids[-1] == vocab.SEP


def test_every_word_of_the_grammar_is_one_token(tokenizer: Any) -> None:
    for index in range(500):
        caption = describe(sample_scene(6, index), Random(index))
        ids = tokenizer(PROMPT + caption, add_special_tokens=False).input_ids
        assert len(ids) == len(f"{PROMPT}{caption}".split())
        assert vocab.UNK not in ids
        assert tokenizer.decode(ids) == PROMPT + caption


@given(st.text("abcxyz0189 _-/&", min_size=1, max_size=38))
def test_western_web_text_falls_into_known_pieces(text: str) -> None:
    assert vocab.UNK not in vocab.build_tokenizer()(text).input_ids


# Pairs


def test_pictures_do_not_depend_on_the_number_of_workers() -> None:
    one, two = make_pictures(3, 12, 1), make_pictures(3, 12, 2)
    assert one.scenes == two.scenes
    assert one.pixels.shape == (12, 64, 64, 3)
    assert np.array_equal(one.pixels, two.pixels)


def test_an_epoch_shows_every_picture_once_and_a_resumed_run_its_own_epoch() -> None:
    pictures = make_pictures(3, 12, 1)
    draws = batches(pictures, 4, seed=1)
    epochs = [[next(draws)[0] for _ in range(3)] for _ in range(2)]
    assert [sorted(chain.from_iterable(epoch)) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    resumed = batches(pictures, 4, seed=1, done=4)
    assert [next(resumed)[0] for _ in range(3)] == epochs[1]
    with pytest.raises(ValueError, match="too few"):
        next(batches(pictures, 13, seed=1))


@given(st.integers(0, 2**32))
def test_false_texts_are_false(seed: int) -> None:
    scene, rng = sample_scene(8, seed), Random(seed)
    assert not facts_true(false_text(scene, describe(scene, rng), rng), scene)


# Training


def test_the_prompt_and_the_padding_carry_no_loss(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(training.model_config()).eval()
    pixels = pixels_of(make_pictures(3, 2, 1), [0, 1])
    captions = [["a red star"], ["a small blue ring on a grey background"]]
    both = caption_loss(model, tokenizer, pixels, captions, 0.0)
    alone = [
        caption_loss(model, tokenizer, pixels[i : i + 1], captions[i : i + 1], 0.0).item()
        for i in (0, 1)
    ]
    tokens = [len(texts[0].split()) + 1 for texts in captions]  # the words and [SEP]
    weighted = sum(loss * n for loss, n in zip(alone, tokens, strict=True)) / sum(tokens)
    assert both.item() == pytest.approx(weighted, rel=1e-4)


def test_every_patch_has_a_position_of_its_own_that_says_row_and_column() -> None:
    embeddings = training.new_captioner().vision_model.embeddings.position_embedding
    grid = embeddings[0, 1:].detach().view(8, 8, -1)
    flat = grid.flatten(0, 1)
    distances = torch.cdist(flat, flat) + torch.eye(64) * 9
    assert distances.min() > 0.5
    rows, columns = grid.chunk(2, dim=2)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))


def test_learning_rate_rises_then_falls() -> None:
    _, pretrain, _, _ = Schedule().phases()
    rates = [pretrain.learning_rate(step) for step in range(pretrain.steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(pretrain.peak)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < pretrain.peak / 50


def test_losses_fall(trained: tuple[Path, dict[str, training.Losses]]) -> None:
    _, losses = trained
    assert list(losses) == ["single items", "pretrain", "captioner", "filter"]
    assert losses["single items"].last < losses["single items"].first - 0.5
    assert losses["filter"].last < losses["filter"].first


@pytest.mark.parametrize("role", CLASSES)
def test_trained_models_load_whole(
    trained: tuple[Path, dict[str, training.Losses]], role: str
) -> None:
    model, info = CLASSES[role].from_pretrained(trained[0] / role, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32


def test_captioner_and_filter_are_fine_tuned_apart(
    trained: tuple[Path, dict[str, training.Losses]],
) -> None:
    name = "vision_model.encoder.layers.0.self_attn.qkv.weight"
    one, other = (CLASSES[role].from_pretrained(trained[0] / role) for role in CLASSES)
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_a_training_goes_on_from_its_checkpoints(
    trained: tuple[Path, dict[str, training.Losses]], tmp_path: Path
) -> None:
    out, losses = trained
    work = tmp_path / "work"
    work.mkdir()
    for name in ("single-items.pt", "pretrain.pt", "schedule.json"):
        (work / name).write_bytes((out / "work" / name).read_bytes())
    again = train(TINY, tmp_path, threads=1)
    assert {name: again[name] for name in ("single items", "pretrain")} == {
        name: losses[name] for name in ("single items", "pretrain")
    }
    assert again["captioner"].first == pytest.approx(losses["captioner"].first, abs=0.02)


def test_a_folder_of_another_schedule_is_refused(
    trained: tuple[Path, dict[str, training.Losses]],
) -> None:
    with pytest.raises(InputError, match="another schedule"):
        train(replace(TINY, seed=9), trained[0], threads=1)
