"""Checkpoints in the forms that older releases left, and what a captioner writes with them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from capfilt.models.checkpoints import resolve_model
from capfilt.models.loaders import open_captioner
from capfilt.models.recipe import Beam, CaptionerRecipe
from tests.models.tiny2 import some_images

IMAGES = some_images(2)


def as_released(folder: Path) -> dict[str, torch.Tensor]:
    """Return a captioner's weights as old releases stored them: tied under both names, buffers."""
    state: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    bias, words = "text_decoder.cls.predictions.bias", "text_decoder.bert.embeddings"
    if bias in state:
        state["text_decoder.cls.predictions.decoder.bias"] = state[bias]
        state[f"{words}.position_ids"] = torch.arange(40)[None]
        tied = ("text_decoder.cls.predictions.decoder.weight", f"{words}.word_embeddings.weight")
        [kept] = [state[name] for name in tied if name in state]
        state |= dict.fromkeys(tied, kept)
    return state


def pickled(folder: Path, legacy: bool = False) -> Path:
    """Turn a checkpoint's weights into the pickle of before."""
    file = folder / "pytorch_model.bin"
    torch.save(as_released(folder), file, _use_new_zipfile_serialization=not legacy)
    (folder / "model.safetensors").unlink()
    return file


def pickled_shards(folder: Path, count: int = 3) -> None:
    state = as_released(folder)
    where = {name: number % count for number, name in enumerate(sorted(state))}
    names = [f"pytorch_model-{n + 1:05d}-of-{count:05d}.bin" for n in range(count)]
    for number, file in enumerate(names):
        part = {name: tensor for name, tensor in state.items() if where[name] == number}
        torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": {name: names[n] for name, n in where.items()}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def captions(folder: Path) -> list[list[str]]:
    ref = resolve_model(str(folder), "captioner")
    recipe = CaptionerRecipe(ref, decoding=Beam(2), num_captions=2)
    return open_captioner(recipe).caption(IMAGES, ["a", "b"])
