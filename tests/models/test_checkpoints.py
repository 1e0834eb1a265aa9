"""Checkpoint folders as users' tools leave them: what loads, and what is refused before work."""

import contextlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration

from capfilt.errors import ModelError
from capfilt.evaluate.models import find_models
from capfilt.models.checkpoints import resolve_model, share_weights, weight_bytes
from capfilt.models.checkpoints.pickled import read_pickled
from capfilt.models.checkpoints.weights import read_tensors, weights_of
from capfilt.models.families import ModelKind, Role
from capfilt.models.loaders import open_matcher
from capfilt.models.recipe import ModelRef
from capfilt.models.vocabulary import check_vocabularies, encoder_token, vocabulary_of
from capfilt.recipe.options import RoundOptions, build_round
from capfilt.train.start import start_of
from tests.models.pickles import IMAGES, captions, pickled, pickled_shards
from tests.models.tiny2 import (
    OPT,
    T5,
    save_blip2_captioner,
    save_blip2_matcher,
    save_clip,
    save_instructblip,
)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 99\n"


@pytest.fixture
def captioner(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair[0], tmp_path / "captioner"))


@pytest.fixture
def matcher(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair[1], tmp_path / "matcher"))


def scores(folder: Path) -> Any:
    opened = open_matcher(resolve_model(str(folder), "matcher"), "enc", "cpu", "fp32")
    return opened.match(IMAGES, [["a red circle", "the dog"]] * 2)


SAVERS: dict[str, tuple[Role, Callable[[Path], Path]]] = {
    "blip2-opt": ("captioner", lambda folder: save_blip2_captioner(folder, OPT)),
    "blip2-t5": ("captioner", lambda folder: save_blip2_captioner(folder, T5)),
    "instructblip": ("captioner", lambda folder: save_instructblip(folder, OPT)),
    "blip2-itm": ("matcher", save_blip2_matcher),
    "clip": ("matcher", save_clip),
}


@pytest.mark.parametrize("form", [pickled, lambda f: pickled(f, legacy=True), pickled_shards])
def test_pickles_caption_as_safetensors_do(
    captioner: Path, form: Callable[[Path], object], tmp_path: Path
) -> None:
    expected, before = captions(captioner), resolve_model(str(captioner), "captioner")
    safe = shutil.copytree(captioner, tmp_path / "safe")
    form(captioner)
    after = resolve_model(str(captioner), "captioner")
    assert captions(captioner) == expected
    assert after.digest != before.digest  # identity is the files
    assert share_weights(after, resolve_model(str(safe), "captioner"))
    files = [file for file in captioner.iterdir() if file.suffix == ".bin"]
    assert weight_bytes(after) == sum(file.stat().st_size for file in files)
    file = max(files)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged or half copied"):
        resolve_model(str(captioner), "captioner")


@pytest.mark.parametrize("name", SAVERS)
@pytest.mark.parametrize("form", [pickled, pickled_shards])
def test_every_family_loads_from_pickles(
    name: str, form: Callable[[Path], object], tmp_path: Path
) -> None:
    role, save = SAVERS[name]
    folder = save(tmp_path / name)
    before = captions(folder) if role == "captioner" else scores(folder)
    form(folder)
    after = captions(folder) if role == "captioner" else scores(folder)
    assert np.array_equal(np.array(before), np.array(after), equal_nan=role == "matcher")


def test_safetensors_come_first_and_the_digest_is_of_what_is_used(captioner: Path) -> None:
    ref = resolve_model(str(captioner), "captioner")
    (captioner / "pytorch_model.bin").write_bytes(b"never read")
    assert resolve_model(str(captioner), "captioner") == ref
    assert weights_of(captioner).files == (captioner / "model.safetensors",)


def test_digests_of_safetensors_never_change() -> None:
    """What a finished run recorded of the shipped models, before there were other formats."""
    assert resolve_model("embedded", "captioner").digest == "d05e5008e3f4249fddf012a5e98966e5"
    assert resolve_model("embedded", "matcher").digest == "ffd257f8365a09c190b58a26dd083f66"


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_without_torch_as_torch_reads_them(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(60, dtype=torch.float32).view(6, 10)
    state = OrderedDict(
        plain=base,
        turned=base.t(),
        part=base[2:4, 1:7:2],
        half=base.half(),
        brain=base.bfloat16(),
        whole=torch.arange(5),
        one=torch.tensor(3.0),
        none=torch.zeros(0, 4),
        learnt=torch.nn.Parameter(base.clone()),
    )
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as state_dict leaves it
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    found = read_pickled(file)
    assert list(found) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert found[name].content() == expected, name
        assert found[name].shape == tuple(tensor.shape)
    save_file(
        {name: t.detach().clone().contiguous() for name, t in state.items()},
        tmp_path / "x.safetensors",
    )
    safe = read_tensors(tmp_path / "x.safetensors")
    assert {n: (t.dtype, t.content()) for n, t in safe.items()} == {
        n: (t.dtype, t.content()) for n, t in found.items()
    }


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched-by-a-pickle"),))


class Subtle:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("1 + 1",))


@pytest.mark.parametrize("evil", [Evil(), Subtle(), np.float64(3.0), torch.nn.Linear(2, 2)])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_needs_more_than_weights_is_refused_and_not_run(
    captioner: Path, evil: object, legacy: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = pickled(captioner)
    state = {**state_in(file), "evil": evil}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="holds more than weights") as told:
        resolve_model(str(captioner), "captioner")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "touched-by-a-pickle").exists()


def state_in(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return found


def test_a_bare_pickle_and_a_training_s_own_checkpoint_are_refused(captioner: Path) -> None:
    file = pickled(captioner)
    torch.save({"epoch": 3, "model": state_in(file)}, file)
    with pytest.raises(ModelError, match="no dict of weights but holds epoch, model"):
        resolve_model(str(captioner), "captioner")
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match="no whole PyTorch file"):
        resolve_model(str(captioner), "captioner")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_in_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def padded(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\x00" * 8)


def a_web_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><title>Log in</title></html>" * 9)


def pointed(file: Path) -> None:
    file.write_text(POINTER)


DAMAGES = [cut, cut_in_header, emptied, a_web_page, pointed]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", ["safe", "zip", "legacy"])
def test_damaged_weights_are_one_line_before_any_work(
    captioner: Path, form: str, damage: Callable[[Path], None]
) -> None:
    file = captioner / "model.safetensors"
    if form != "safe":
        file = pickled(captioner, legacy=form == "legacy")
    damage(file)
    with pytest.raises(ModelError, match=r"damaged or half copied|Git LFS pointer") as told:
        resolve_model(str(captioner), "captioner")
    assert "\n" not in str(told.value)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_turned_bit_in_a_pickle_is_damage(captioner: Path, place: float) -> None:
    file = pickled(captioner)
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 16
    file.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or half copied"):
        resolve_model(str(captioner), "captioner")


def test_a_pickle_that_was_saved_without_checksums_is_used(captioner: Path) -> None:
    expected = captions(captioner)
    torch.serialization.set_crc32_options(False)
    try:
        pickled(captioner)
    finally:
        torch.serialization.set_crc32_options(True)
    assert captions(captioner) == expected


def changed_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    weights = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tensor", ["text_encoder.embeddings.word_embeddings.weight", "itm_head"])
def test_weights_that_are_no_numbers_are_refused(matcher: Path, tensor: str, bad: float) -> None:
    def spoilt(name: str, weights: torch.Tensor) -> torch.Tensor:
        if name.startswith(tensor):
            weights.view(-1)[-1] = bad
        return weights

    changed_weights(matcher, spoilt)
    with pytest.raises(ModelError, match=rf"weights that are no numbers \({tensor}"):
        scores(matcher)


def test_a_file_that_ends_in_zeros_is_refused(matcher: Path) -> None:
    """What a broken-off download leaves where the file's length was reserved first."""
    file = matcher / "model.safetensors"
    content = file.read_bytes()
    for kept in (0.5, 0.9):
        whole = int(len(content) * kept)
        file.write_bytes(content[:whole] + bytes(len(content) - whole))
        with pytest.raises(ModelError, match="weights that are all zeros"):
            scores(matcher)


def test_weights_of_another_shape_are_named(matcher: Path) -> None:
    changed_weights(matcher, lambda name, t: t[:-1].clone() if name == "vision_proj.weight" else t)
    with pytest.raises(ModelError, match=r"of another shape \(.*vision_proj.weight") as told:
        scores(matcher)
    assert "ignore_mismatched_sizes" not in str(told.value)


def test_longer_files_than_their_headers_tell_are_damaged(captioner: Path) -> None:
    padded(captioner / "model.safetensors")
    with pytest.raises(ModelError, match="damaged or half copied"):
        resolve_model(str(captioner), "captioner")


def test_a_zip_that_lacks_a_storage_is_damaged(captioner: Path) -> None:
    file = pickled(captioner)
    kept = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(kept, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith("/data/3"):
                new.writestr(info, old.read(info))
    file.write_bytes(kept.getvalue())
    with pytest.raises(ModelError, match="damaged or half copied"):
        resolve_model(str(captioner), "captioner")


@pytest.mark.parametrize("part", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_pointer_in_place_of_any_part_is_told_as_that(captioner: Path, part: str) -> None:
    (captioner / part).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"{part} is a Git LFS pointer.*git lfs pull"):
        resolve_model(str(captioner), "captioner")


@pytest.mark.parametrize("pickle_form", [False, True])
def test_a_missing_shard_is_named(captioner: Path, pickle_form: bool) -> None:
    if pickle_form:
        pickled_shards(captioner)
    else:
        model = BlipForConditionalGeneration.from_pretrained(captioner)
        (captioner / "model.safetensors").unlink()
        model.save_pretrained(captioner, max_shard_size="60KB")
    assert len(weights_of(captioner).files) > 2
    lost = weights_of(captioner).files[1]
    lost.unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of its \d+ weight files \({lost.name}\)"):
        resolve_model(str(captioner), "captioner")
    index = next(captioner.glob("*.index.json"))
    index.write_text('{"weight_map": {"x": "../elsewhere.safetensors"}}')
    with pytest.raises(ModelError, match="names no files of its own folder"):
        resolve_model(str(captioner), "captioner")


def test_other_frameworks_weights_are_named(captioner: Path) -> None:
    (captioner / "model.safetensors").rename(captioner / "tf_model.h5")
    with pytest.raises(ModelError, match=r"no weights: tf_model\.h5 cannot be used"):
        resolve_model(str(captioner), "captioner")


@pytest.mark.parametrize("place", [(), ("text_config",)])
def test_quantised_checkpoints_are_refused(captioner: Path, place: tuple[str, ...]) -> None:
    file = captioner / "config.json"
    config = json.loads(file.read_text())
    part = config
    for name in place:
        part = part[name]
    part["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is quantised \(gptq\)"):
        resolve_model(str(captioner), "captioner")
    with pytest.raises(ModelError, match=r"is quantised \(gptq\)"):
        start_of(str(captioner), fresh=True)


def test_weights_of_integers_are_quantised_whatever_config_says(captioner: Path) -> None:
    state = load_file(captioner / "model.safetensors")
    name = next(name for name in state if name.endswith("query.weight"))
    state[name] = state[name].to(torch.int8)
    save_file(state, captioner / "model.safetensors")
    with pytest.raises(ModelError, match="quantised"):
        resolve_model(str(captioner), "captioner")


def without(folder: Path, *tokens: str) -> None:
    """Save a tokenizer of the same words without some, as if they had never been added."""
    file = folder / "tokenizer.json"
    plain = json.loads(file.read_text())
    kept = [word for word in plain["model"]["vocab"] if word not in tokens]
    file.unlink()
    (folder / "vocab.txt").write_text("\n".join(kept) + "\n")


def test_a_tokenizer_without_dec_is_that_of_other_weights(captioner: Path, matcher: Path) -> None:
    without(captioner, "[DEC]", "[ENC]")
    with pytest.raises(ModelError, match=r"\[DEC\] is 5 in config\.json, and 'a' has that number"):
        resolve_model(str(captioner), "captioner")
    without(matcher, "[MASK]")  # shifts the start, not the size
    with pytest.raises(ModelError, match="tokenizer of other weights"):
        resolve_model(str(matcher), "matcher")


def test_a_matcher_without_enc_is_refused_unless_cls_is_asked_for(matcher: Path) -> None:
    text = (matcher / "tokenizer.json").read_text().replace("[ENC]", "[ANY]")
    (matcher / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"no \[ENC\] token"):
        build_round(RoundOptions(matcher=str(matcher)))
    assert build_round(RoundOptions(matcher=str(matcher), itm_token="cls"))
    with pytest.raises(ModelError, match=r"no \[ENC\] token"):
        find_models(None, str(matcher))


def test_released_tokenizers_lack_dec_and_enc_at_the_end_and_fit() -> None:
    vocabulary = {"[PAD]": 0, "[SEP]": 1, "a": 2}
    text = {"vocab_size": 5, "bos_token_id": 3, "sep_token_id": 1, "pad_token_id": 0}
    assert encoder_token(vocabulary, text) == 4
    assert encoder_token({**vocabulary, "[ENC]": 9}, text) == 9
    assert encoder_token(vocabulary, {**text, "vocab_size": 4}) is None


@pytest.mark.parametrize("name", [*SAVERS, "blip"])
def test_ids_beyond_the_embedding_are_refused(name: str, tmp_path: Path, captioner: Path) -> None:
    role, save = SAVERS.get(name, ("captioner", lambda _: captioner))
    folder = save(tmp_path / name)
    resolve_model(str(folder), role)
    inner = folder / "qformer_tokenizer"
    for place in [folder, *([inner] if inner.is_dir() else [])]:
        file = place / "tokenizer.json"
        before = file.read_text()
        plain = json.loads(before)
        plain["added_tokens"].append({**plain["added_tokens"][0], "content": "<new>", "id": 4000})
        file.write_text(json.dumps(plain))
        with pytest.raises(ModelError, match=r"1 tokens \('<new>', …\) lie beyond"):
            resolve_model(str(folder), role)
        file.write_text(before)


def test_a_checkpoint_without_a_tokenizer_is_told(captioner: Path) -> None:
    (captioner / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        resolve_model(str(captioner), "captioner")
    (captioner / "spiece.model").write_bytes(b"SentencePiece")
    assert vocabulary_of(captioner) is None
    check_vocabularies(captioner, ModelKind.BLIP_CAPTIONER)  # only a library can read it


@pytest.mark.parametrize("files", ["vocab.txt", "vocab.json", "unigram", "decoder"])
def test_vocabularies_are_read_from_every_file_that_has_them(tmp_path: Path, files: str) -> None:
    if files == "unigram":
        plain = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": None}
        (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    elif files == "vocab.json":
        (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
        (tmp_path / "added_tokens.json").write_text('{"[DEC]": 2}')
    else:
        (tmp_path / "vocab.txt").write_text("a\r\nb\r\n")
    if files == "decoder":
        added = {"added_tokens_decoder": {"2": {"content": "[DEC]"}}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    found = vocabulary_of(tmp_path)
    assert found == {"a": 0, "b": 1} | ({"[DEC]": 2} if files in {"vocab.json", "decoder"} else {})


def torn_matcher(folder: Path) -> str:
    cut(folder / "model.safetensors")
    return "damaged or half copied"


def test_every_way_in_goes_through_the_same_check(matcher: Path, tmp_path: Path) -> None:
    message = torn_matcher(matcher)
    with pytest.raises(ModelError, match=message):
        build_round(RoundOptions(matcher=str(matcher)))
    with pytest.raises(ModelError, match=message):
        build_round(RoundOptions(scorer=str(matcher)))
    with pytest.raises(ModelError, match=message):
        find_models(None, str(matcher))
    with pytest.raises(ModelError, match=message):
        start_of(str(matcher), fresh=False)
    trained = tmp_path / "trained"
    trained.mkdir()
    shutil.copytree(matcher, trained / "matcher")
    with pytest.raises(ModelError, match=message):
        start_of(str(trained), fresh=False)


@pytest.mark.parametrize("verb", ["plan", "run", "evaluate", "train", "rounds"])
def test_commands_end_with_one_line_and_exit_2(matcher: Path, tmp_path: Path, verb: str) -> None:
    torn_matcher(matcher)
    table = tmp_path / "table.csv"
    table.write_text("url,caption\nhttp://127.0.0.1:9/a.png,a dog\n")
    run = ["--run", str(tmp_path / "run"), "--matcher", str(matcher)]
    given = {
        "plan": ["plan", str(table), *run],
        "run": ["run", str(table), *run],
        "evaluate": ["evaluate", str(tmp_path / "nothing.parquet"), "--matcher", str(matcher)],
        "train": ["train", "filter", str(tmp_path), "--init", str(matcher), "--out", str(tmp_path)],
        "rounds": ["rounds", "1", str(table), "--out", str(tmp_path / "out"), "--init"],
    }[verb]
    if verb == "rounds":
        given += [str(matcher), "--human", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, "-m", "capfilt", *given], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2, ran.stderr
    assert not (tmp_path / "run").exists()
    if verb != "rounds":  # which looks at its human pairs first
        [line] = ran.stderr.strip().splitlines()
        assert line.startswith("capfilt: ")
        assert "damaged or half copied" in line


def test_a_training_goes_on_from_pickles_and_sees_that_they_change(captioner: Path) -> None:
    pickled(captioner)
    first = start_of(str(captioner), fresh=False)
    state = state_in(captioner / "pytorch_model.bin")
    state["text_decoder.cls.predictions.bias"] += 1
    torch.save(state, captioner / "pytorch_model.bin")
    assert start_of(str(captioner), fresh=False).digest != first.digest
    like = start_of(str(captioner), fresh=True)
    (captioner / "pytorch_model.bin").unlink()
    assert start_of(str(captioner), fresh=True) == like  # an architecture needs no weights


def test_pictures_of_another_size_than_the_weights_take_are_refused(captioner: Path) -> None:
    file = captioner / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": 64}))
    with pytest.raises(ModelError, match="pictures of 64 pixels, and its weights are for 32"):
        resolve_model(str(captioner), "captioner")


def test_a_link_to_nothing_is_one_line(captioner: Path) -> None:
    (captioner / "model.safetensors").unlink()
    (captioner / "model.safetensors").symlink_to("/nowhere/blobs/1")  # of a cache that was emptied
    with pytest.raises(ModelError, match=r"cannot be read: .*No such file"):
        resolve_model(str(captioner), "captioner")


def rebuild(*told: Any) -> bytes:
    """Return a pickle of one tensor that tells these of its storage's 4 floats."""

    class Fake:
        def __reduce__(self) -> tuple[Any, ...]:
            return (torch._utils._rebuild_tensor_v2, (Storage(), *told, False, OrderedDict()))

    class Storage:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            told_of = ("storage", torch.FloatStorage, "0", "cpu", 4)
            return told_of if isinstance(value, Storage) else None

    out = io.BytesIO()
    Writer(out, protocol=2).dump({"vision_model.qkv.weight": Fake()})
    return out.getvalue()


@pytest.mark.parametrize(
    "told",
    [
        (0, (10**9, 10**9), (0, 0)),  # a bomb, were it written out
        (-1, (2, 2), (2, 1)),
        (0, (2, 2), (-2, 1)),
        (1, (2, 2), (2, 1)),
        (0, (5,), (1,)),
        (0, (2, 2), (1,)),
        ("0", (2, "x"), (2, 1)),
    ],
)
def test_tensors_that_are_no_part_of_their_storage_are_damage(tmp_path: Path, told: Any) -> None:
    file = tmp_path / "pytorch_model.bin"
    for good in (False, True):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", rebuild(*((0, (2, 2), (2, 1)) if good else told)))
            archive.writestr("x/data/0", bytes(16))
        if not good:
            with pytest.raises(ModelError, match="damaged or half copied"):
                read_pickled(file)
    assert read_pickled(file)["vision_model.qkv.weight"].content() == bytes(16)


def test_a_model_without_weights_yet_weighs_nothing(tmp_path: Path) -> None:
    assert weight_bytes(ModelRef("", "x", str(tmp_path))) == 0
    assert weight_bytes(ModelRef("", "x", str(tmp_path / "none"))) == 0


def places_in(plain: Any, depth: int = 3) -> list[tuple[Any, ...]]:
    """Return the ways to the values of a JSON tree, those of long lists and dicts left out."""
    if depth == 0 or not isinstance(plain, dict | list) or len(plain) > 60:
        return []
    keys: Any = range(len(plain)) if isinstance(plain, list) else plain
    return [(key, *rest) for key in keys for rest in [(), *places_in(plain[key], depth - 1)]]


PARTS = ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, "x", -1, [], {"x": 1}])
def test_no_value_in_any_part_ends_in_a_traceback(matcher: Path, part: str, value: Any) -> None:
    file = matcher / part
    text = file.read_text()
    places = places_in(json.loads(text))
    assert len(places) > 5
    for *parents, last in places:
        plain = at = json.loads(text)
        for parent in parents:
            at = at[parent]
        at[last] = value
        file.write_text(json.dumps(plain))
        with contextlib.suppress(ModelError):
            resolve_model(str(matcher), "matcher")
    for whole in (value, [value], "not json"):
        file.write_text(whole if whole == "not json" else json.dumps(whole))
        with contextlib.suppress(ModelError):
            resolve_model(str(matcher), "matcher")
