import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, InstructBlipForConditionalGeneration

from capfilt.errors import ModelError
from capfilt.models.checkpoints import resolve_model
from capfilt.models.families import ModelKind, model_kind
from capfilt.models.instructblip import InstructBlipCaptioner
from capfilt.models.loaders import open_captioner
from capfilt.models.recipe import Beam, CaptionerRecipe, Lengths, Nucleus
from tests.models.tiny2 import (
    IMAGE,
    OPT,
    QUERIES,
    T5,
    reference_pixels,
    save_instructblip,
    some_images,
)

INSTRUCTION = "the circle left of the dog "
TEXT_MODELS = {"opt": OPT, "t5": T5}


@pytest.fixture(scope="module", params=TEXT_MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("instructblip") / request.param
    return save_instructblip(place, TEXT_MODELS[request.param])


def captioner_of(
    folder: Path, decoding: Nucleus | Beam, k: int = 1, prompt: str = INSTRUCTION
) -> InstructBlipCaptioner:
    return InstructBlipCaptioner(
        CaptionerRecipe(
            resolve_model(str(folder), "captioner"),
            decoding=decoding,
            lengths=Lengths(),
            prompt=prompt,
            num_captions=k,
            seed=5,
        )
    )


def reference_captions(folder: Path, count: int) -> list[str]:
    model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = tokenizer(INSTRUCTION.strip()).input_ids
    asked = AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")(
        [INSTRUCTION.strip()] * count, return_tensors="pt"
    )
    ids = torch.tensor([[IMAGE] * QUERIES + own]).repeat(count, 1)
    found = model.generate(
        pixel_values=reference_pixels(folder, some_images(count)),
        qformer_input_ids=asked.input_ids,
        qformer_attention_mask=asked.attention_mask,
        input_ids=ids,
        do_sample=False,
        min_new_tokens=max(0, 5 - len(own)),
        max_new_tokens=20 - len(own),
    )
    cut = 1 if model.language_model.config.is_encoder_decoder else ids.shape[1]
    return [tokenizer.decode(row[cut:], skip_special_tokens=True).strip() for row in found]


@pytest.mark.parametrize("decoding", [Beam(1), Nucleus(top_p=1e-9, repetition_penalty=1.0)])
def test_greedy_captions_are_those_of_transformers(folder: Path, decoding: Nucleus | Beam) -> None:
    found = captioner_of(folder, decoding).caption(some_images(5), list("abcde"))
    assert [text for (text,) in found] == reference_captions(folder, 5)


def test_the_queries_look_for_what_is_asked(folder: Path) -> None:
    """The instruction reaches the Q-Former, not the language model alone."""
    asked, other = (
        captioner_of(folder, Nucleus(), prompt=prompt) for prompt in (INSTRUCTION, "a small cat")
    )
    with torch.inference_mode():
        ours, theirs = (
            one._queries(torch.from_numpy(np.stack(some_images(2)))) for one in (asked, other)
        )
    assert ours.shape == theirs.shape == (2, QUERIES, 32)
    assert (ours - theirs).abs().max() > 0.01


def test_neighbours_change_no_caption(folder: Path) -> None:
    captioner = captioner_of(folder, Nucleus(), k=3)
    images, keys = some_images(11), [f"k{i}" for i in range(11)]
    whole = captioner.caption(images, keys)
    assert [captioner.caption([images[i]], [keys[i]])[0] for i in range(11)] == whole
    assert captioner.caption(images[::-1], keys[::-1]) == whole[::-1]


def test_the_right_class_is_opened(folder: Path) -> None:
    assert model_kind(folder, "captioner") is ModelKind.INSTRUCTBLIP_CAPTIONER
    ref = resolve_model(str(folder), "captioner")
    opened = open_captioner(
        CaptionerRecipe(
            ref, decoding=Nucleus(), lengths=Lengths(), prompt="a", num_captions=1, seed=0
        )
    )
    assert type(opened) is InstructBlipCaptioner
    with pytest.raises(ModelError, match="is a InstructBlipForConditionalGeneration; as matcher"):
        resolve_model(str(folder), "matcher")


def test_the_second_tokenizer_is_part_of_the_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert (
        resolve_model(str(copy), "captioner").digest
        == resolve_model(str(folder), "captioner").digest
    )
    file = copy / "qformer_tokenizer" / "tokenizer_config.json"
    file.write_text(file.read_text().replace("{", "{ ", 1))
    assert (
        resolve_model(str(copy), "captioner").digest
        != resolve_model(str(folder), "captioner").digest
    )
    shutil.rmtree(copy / "qformer_tokenizer")
    with pytest.raises(ModelError, match="has no qformer_tokenizer"):
        captioner_of(copy, Nucleus())
