"""Adapters of peft: merged into their base when it is loaded, or refused."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.errors import ModelError
from capfilt.models.checkpoints import resolve_model, share_weights, weight_bytes
from capfilt.models.families import Role
from capfilt.models.loaders import open_matcher
from capfilt.train.start import start_of
from tests.models.pickles import IMAGES, captions

peft = pytest.importorskip("peft", reason="peft merges adapters: pip install 'capfilt[adapters]'")

# Between peft and transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning")
CLASSES = {"captioner": BlipForConditionalGeneration, "matcher": BlipForImageTextRetrieval}


def adapt(base: Path, out: Path, role: Role, targets: list[str], **more: Any) -> Any:
    """Save a LoRA with weights that matter; returns the model with it, as peft runs it."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, **more)
    model = peft.get_peft_model(CLASSES[role].from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out)
    return model.eval()


@pytest.fixture(scope="module")
def adapted(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "lora"
    adapt(tiny_pair[0], out, "captioner", ["query", "value"])
    return out


def merged(base: Path, adapter: Path, out: Path) -> Path:
    """Merge by peft itself and save, as a user would by hand."""
    model = CLASSES["captioner"].from_pretrained(base)
    whole = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    shutil.copytree(base, out)
    (out / "model.safetensors").unlink()
    whole.save_pretrained(out)
    return out


def test_an_adapter_alone_captions_as_its_merged_weights(
    tiny_pair: tuple[Path, Path], adapted: Path, tmp_path: Path
) -> None:
    base = resolve_model(str(tiny_pair[0]), "captioner")
    ref = resolve_model(str(adapted), "captioner")
    assert (ref.path, ref.adapter) == (base.path, str(adapted))
    assert ref.described == f"{adapted} on {tiny_pair[0]}"
    assert ref.digest != base.digest
    assert weight_bytes(ref) > weight_bytes(base)
    own = captions(merged(tiny_pair[0], adapted, tmp_path / "merged"))
    assert captions(adapted) == own
    assert own != captions(tiny_pair[0])  # the adapter matters


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "IA3Config"])
def test_other_kinds_are_merged_as_peft_merges_them(
    kind: str, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    torch.manual_seed(4)
    targets = ["query", "value"]
    more: dict[str, Any] = {"feedforward_modules": []} if kind == "IA3Config" else {"r": 4}
    config = getattr(peft, kind)(target_modules=targets, **more)
    base = BlipForConditionalGeneration.from_pretrained(tiny_pair[0])
    model = peft.get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    own = captions(merged(tiny_pair[0], tmp_path / "adapter", tmp_path / "merged"))
    assert captions(tmp_path / "adapter") == own
    assert own != captions(tiny_pair[0])


def test_a_matcher_is_adapted_and_scores_as_peft_does(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = adapt(tiny_pair[1], tmp_path / "a", "matcher", ["qkv", "query"])
    ref = resolve_model(str(tmp_path / "a"), "matcher")
    matcher = open_matcher(ref, "cls", "cpu", "fp32")
    texts = ["a red circle", "the dog"]
    itm, itc = matcher.match(IMAGES, [texts] * 2)
    tokens = AutoTokenizer.from_pretrained(tiny_pair[1])(texts, padding=True, return_tensors="pt")
    pixels = matcher._pixels(torch.from_numpy(np.stack(IMAGES)))  # type: ignore[attr-defined]  # a BlipMatcher
    with torch.inference_mode():
        for place in range(2):
            image = pixels[place : place + 1].repeat(2, 1, 1, 1)
            given = {**tokens, "pixel_values": image}
            given.pop("token_type_ids", None)
            scores = model(**given).itm_score.softmax(-1)[:, 1]
            cosine = model(**given, use_itm_head=False).itm_score[0]
            assert np.allclose(itm[place], scores, atol=1e-5)
            assert np.allclose(itc[place], cosine, atol=1e-5)


def test_the_digest_is_of_base_and_adapter(adapted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    ref = resolve_model(str(copy), "captioner")
    assert ref.digest == resolve_model(str(adapted), "captioner").digest
    base = Path(shutil.copytree(ref.path, tmp_path / "base"))
    config = json.loads((copy / "adapter_config.json").read_text())
    for part in (copy / "adapter_model.safetensors", base / "model.safetensors"):
        (copy / "adapter_config.json").write_text(
            json.dumps({**config, "base_model_name_or_path": str(base)})
        )
        before = resolve_model(str(copy), "captioner").digest
        state = load_file(part)
        first = min(state)
        save_file({**state, first: state[first] + 1}, part)
        assert resolve_model(str(copy), "captioner").digest != before


def test_an_adapter_beside_the_weights_of_its_base(
    tiny_pair: tuple[Path, Path], adapted: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_pair[0], tmp_path / "both"))
    plain = resolve_model(str(folder), "captioner")
    shutil.copytree(adapted, folder, dirs_exist_ok=True)
    ref = resolve_model(str(folder), "captioner")
    assert ref.path == str(folder)
    assert ref.digest != plain.digest
    assert captions(folder) == captions(adapted)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "."
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert captions(folder) == captions(adapted)


def test_weights_that_may_have_the_adapter_already_are_refused(
    tiny_pair: tuple[Path, Path], adapted: Path, tmp_path: Path
) -> None:
    folder = merged(tiny_pair[0], adapted, tmp_path / "merged")
    shutil.copytree(adapted, folder, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="they may have the adapter in them already"):
        resolve_model(str(folder), "captioner")


def test_without_peft_an_adapter_is_refused_and_never_passed_over(
    tiny_pair: tuple[Path, Path], adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_pair[0], tmp_path / "both"))
    shutil.copytree(adapted, folder, dirs_exist_ok=True)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "peft" else found(name, *a)
    )
    for place in (adapted, folder):
        with pytest.raises(ModelError, match=r"needs peft: pip install 'capfilt\[adapters\]'"):
            resolve_model(str(place), "captioner")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "type PROMPT_TUNING, which is not merged"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "the base of the adapter .* no folder"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(
    adapted: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ModelError, match=message):
        resolve_model(str(copy), "captioner")


def test_an_adapter_of_the_wrong_role_or_torn_is_refused(
    adapted: Path, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="as matcher one of"):
        resolve_model(str(adapted), "matcher")
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"but no adapter_model\.safetensors"):
        resolve_model(str(copy), "captioner")
    config = json.loads((copy / "adapter_config.json").read_text())
    nested = {**config, "base_model_name_or_path": str(adapted)}
    (copy / "adapter_config.json").write_text(json.dumps(nested))
    shutil.copy(adapted / "adapter_model.safetensors", copy)
    with pytest.raises(ModelError, match=r"the base of the adapter .* is an adapter itself"):
        resolve_model(str(copy), "captioner")


@pytest.mark.parametrize("fault", ["half a module", "another model"])
def test_matrices_that_find_no_place_are_refused(adapted: Path, tmp_path: Path, fault: str) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    file = copy / "adapter_model.safetensors"
    state = load_file(file)
    first = min(state)
    tensor = state.pop(first)
    if fault == "another model":
        state[first.replace("text_decoder", "language_model")] = tensor
    save_file(state, file)
    with pytest.raises(ModelError, match="does not fit"):
        captions(copy)


def test_an_adapted_image_encoder_is_not_the_base_s(
    tiny_pair: tuple[Path, Path], adapted: Path, tmp_path: Path
) -> None:
    base = resolve_model(str(tiny_pair[0]), "captioner")
    assert share_weights(base, resolve_model(str(adapted), "captioner"))  # text alone is adapted
    adapt(tiny_pair[0], tmp_path / "v", "captioner", ["qkv"])
    assert not share_weights(base, resolve_model(str(tmp_path / "v"), "captioner"))


def test_a_pickled_adapter_is_read_by_weights_only_too(adapted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    file = copy / "adapter_model.safetensors"
    torch.save(load_file(file), copy / "adapter_model.bin")
    file.unlink()
    assert captions(copy) == captions(adapted)
    torch.save({"x": np.float64(1.0)}, copy / "adapter_model.bin")
    with pytest.raises(ModelError, match="holds more than weights"):
        resolve_model(str(copy), "captioner")


def test_a_training_starts_from_whole_weights(
    adapted: Path, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_pair[0], tmp_path / "both"))
    shutil.copytree(adapted, folder, dirs_exist_ok=True)
    for place in (adapted, folder):
        with pytest.raises(ModelError, match="a training starts from whole weights"):
            start_of(str(place), fresh=False)
