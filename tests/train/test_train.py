"""The embedded models, their vocabulary, how they are judged, and a training of a few steps."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from capfilt.errors import InputError
from capfilt.simweb import vocab
from capfilt.simweb.falsehoods import false_text
from capfilt.simweb.grammar import describe, facts_true
from capfilt.simweb.scenes import sample_scene
from capfilt.train.training import Trained
from pipelines.experiments.quality import MODELS, PROMPT, measure
from pipelines.experiments.train import QUICK, Schedule, phases, train_models

TINY = replace(QUICK, label_steps=24, pretrain_steps=8, captioner_steps=4, filter_steps=12)
CLASSES = {"captioner": BlipForConditionalGeneration, "matcher": BlipForImageTextRetrieval}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Trained]]:
    """Return the folder of a training of some fifty steps, and what it came to."""
    out = tmp_path_factory.mktemp("trained")
    return out, train_models(TINY, out)


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


@given(st.integers(0, 2**32))
def test_false_texts_are_false(seed: int) -> None:
    scene, rng = sample_scene(8, seed), Random(seed)
    assert not facts_true(false_text(scene, describe(scene, rng), rng), scene)


# Training


def test_the_phases_go_on_from_one_another() -> None:
    labels, pretrain, captioner, match = phases(Schedule())
    assert labels.start is None
    assert pretrain.start == labels.name
    assert captioner.start == match.start == pretrain.name
    assert [phase.matches for phase in (labels, pretrain, captioner, match)] == [False] * 3 + [True]


def test_losses_fall(trained: tuple[Path, dict[str, Trained]]) -> None:
    _, found = trained
    assert list(found) == ["labels", "pretrain", "captioner", "filter"]
    assert found["labels"].last["loss"] < found["labels"].first["loss"] - 0.5
    assert found["pretrain"].last["lm"] < found["labels"].last["lm"]
    assert set(found["filter"].last) >= {"itc", "itm"}  # which fall later than in a few steps


@pytest.mark.parametrize("role", CLASSES)
def test_trained_models_load_whole_at_half_the_size(
    trained: tuple[Path, dict[str, Trained]], role: str
) -> None:
    model, info = CLASSES[role].from_pretrained(trained[0] / role, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    weights = load_file(trained[0] / role / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


def test_captioner_and_filter_are_fine_tuned_apart(
    trained: tuple[Path, dict[str, Trained]],
) -> None:
    name = "vision_model.encoder.layers.0.self_attn.qkv.weight"
    one, other = (CLASSES[role].from_pretrained(trained[0] / role) for role in CLASSES)
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_a_training_that_is_done_is_not_done_again(
    trained: tuple[Path, dict[str, Trained]],
) -> None:
    out, found = trained
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert train_models(TINY, out) == found
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before


def test_a_folder_of_another_schedule_is_refused(
    trained: tuple[Path, dict[str, Trained]],
) -> None:
    with pytest.raises(InputError, match="another"):
        train_models(replace(TINY, seed=9), trained[0])
