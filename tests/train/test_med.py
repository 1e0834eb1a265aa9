"""MED: what it shares, that its uses are transformers' own, and that its folders load anywhere."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.errors import InputError, ModelError
from capfilt.train.model.med import Med, position_sines
from tests.models.tiny import config

PAD, CLS, SEP, DEC, ENC = 0, 2, 3, 5, 6
KINDS = {"captioner": BlipForConditionalGeneration, "matcher": BlipForImageTextRetrieval}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0.0)


def made(seed: int = 1) -> Med:
    """Return a model whose weights are large enough for outputs to differ."""
    med = Med.new(config(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in med.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15, generator=generator)
            elif parameter.ndim == 1:  # biases and norms too, or a lost one would not show
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return med


@pytest.fixture(scope="module")
def med() -> Med:
    return made()


def texts(count: int, first: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (count, 9) of lengths 4 to 9, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, 60, (count, 9), generator=generator)
    lengths = torch.arange(count) % 6 + 4
    mask = torch.arange(9) < lengths[:, None]
    ids[:, 0] = first
    ids[torch.arange(count), lengths - 1] = SEP
    return ids.masked_fill(~mask, PAD), mask


def pictures(count: int, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def exported(med: Med, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return transformers' models of both exports, loaded by transformers alone."""
    folder = tmp_path_factory.mktemp("exports")
    med.export_captioner(folder / "captioner")
    med.export_matcher(folder / "matcher")
    models = {}
    for name, kind in KINDS.items():
        model, info = kind.from_pretrained(folder / name, output_loading_info=True)
        for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[trouble]
        models[name] = model.eval()
    return models


# What is shared


def test_encoder_and_decoder_share_the_very_tensors_of_all_but_self_attention(med: Med) -> None:
    encoder = dict(med.text_encoder.named_parameters())
    decoder = dict(med.text_decoder.bert.named_parameters())
    assert encoder.keys() == decoder.keys()
    own = {name for name in encoder if encoder[name] is not decoder[name]}
    assert own == {name for name in encoder if ".attention." in name}
    assert own
    predictions = med.text_decoder.cls.predictions
    assert predictions.decoder.weight is med.text_encoder.embeddings.word_embeddings.weight


def test_blip_base_has_as_many_parameters_as_table_3_says() -> None:
    """252M: the 224M of a captioner, and the self-attention of 12 layers and heads more."""
    with torch.device("meta"):
        med = Med(BlipConfig(vision_config={"image_size": 224}))
    count = sum(parameter.numel() for parameter in med.parameters())
    width = 768
    self_attention = 12 * (4 * (width * width + width) + 2 * width)
    heads = 2 * (width * 256 + 256) + 2 * width + 2 + 1  # projections, ITM, temperature
    captioner = sum(parameter.numel() for parameter in med.captioner_parameters())
    assert count == captioner + self_attention + heads
    assert round(captioner / 1e6) == 224
    assert round(count / 1e6) == 252


def test_each_loss_has_a_gradient_for_the_parameters_of_its_export() -> None:
    med = made()
    ids, mask = texts(2, ENC)
    states = med.encode_image(pictures(2))
    plain = med.text_features(med.encode_text(ids, mask))
    contrast = (plain @ med.image_features(states).T / med.temperature).sum()
    (contrast + med.match(ids, mask, states).sum()).backward()  # type: ignore[no-untyped-call]  # torch declares it so
    reached = {id(p) for p in med.parameters() if p.grad is not None}
    assert reached == {id(p) for p in med.matcher_parameters()}
    med.zero_grad()
    med.decode(texts(2, DEC)[0], med.encode_image(pictures(2))).sum().backward()  # type: ignore[no-untyped-call]  # the same
    reached = {id(p) for p in med.parameters() if p.grad is not None}
    assert reached == {id(p) for p in med.captioner_parameters()}


# The uses, against transformers


@torch.no_grad()
def test_image_states_are_those_of_both_exports(med: Med, exported: dict[str, Any]) -> None:
    states = med.encode_image(pictures(3))
    for model in exported.values():
        theirs = model.vision_model(pictures(3)).last_hidden_state
        torch.testing.assert_close(states, theirs)
    assert (states[0] - states[1]).abs().max() > 0.1


@torch.no_grad()
def test_matching_and_contrast_are_transformers_own(med: Med, exported: dict[str, Any]) -> None:
    matcher, pixels = exported["matcher"], pictures(3)
    states = med.encode_image(pixels)
    ids, mask = texts(3, ENC)
    theirs = matcher(ids, pixels, use_itm_head=True, attention_mask=mask.long()).itm_score
    logits = med.match(ids, mask, states)
    assert_close(logits, theirs)
    assert (logits[0] - logits[1]).abs().max() > 0.01
    ids, mask = texts(3, CLS)
    theirs = matcher(ids, pixels, use_itm_head=False, attention_mask=mask.long()).itm_score
    features = med.text_features(med.encode_text(ids, mask))
    assert_close(med.image_features(states) @ features.T, theirs)
    assert_close(features.norm(dim=1), torch.ones(3))


@torch.no_grad()
def test_decoding_is_transformers_own(med: Med, exported: dict[str, Any]) -> None:
    ids, mask = texts(6, DEC)
    pixels = pictures(2)
    theirs = exported["captioner"](
        pixels.repeat_interleave(3, 0), ids, attention_mask=mask.long()
    ).logits
    logits = med.decode(ids, med.encode_image(pixels), 3)
    torch.testing.assert_close(logits[mask], theirs[mask])


@torch.no_grad()
def test_texts_look_at_the_images_that_rows_name(med: Med) -> None:
    states = med.encode_image(pictures(3))
    ids, mask = texts(4, ENC)
    rows = torch.tensor([2, 0, 2, 1])
    picked = med.match(ids, mask, states, rows)
    assert_close(picked, med.match(ids, mask, states[rows]))
    folded = med.match(ids, mask, states[:2])
    copied = med.match(ids, mask, states[:2].repeat_interleave(2, 0))
    assert_close(folded, copied)


# Folding


def gradients(med: Med, captions: int, folded: bool) -> dict[str, torch.Tensor]:
    """Return the gradients of a weighted sum of all logits."""
    med.zero_grad()
    ids, _ = texts(2 * captions, DEC)
    states = med.encode_image(pictures(2))
    if not folded:
        states = states.repeat_interleave(captions, 0)
    logits = med.decode(ids, states, captions if folded else 1)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    (logits * weights).mean().backward()  # type: ignore[no-untyped-call]  # torch declares it so
    return {n: p.grad.clone() for n, p in med.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("captions", [1, 2, 5])
def test_gradients_of_folded_captions_are_those_of_copied_images(captions: int) -> None:
    med = made()
    folded, copied = gradients(med, captions, True), gradients(med, captions, False)
    assert folded.keys() == copied.keys()
    assert max(float(g.abs().max()) for g in copied.values()) > 1e-3
    for name, gradient in folded.items():
        assert_close(gradient, copied[name])


def test_computing_layers_again_changes_no_gradient() -> None:
    med = made()
    kept = gradients(med, 2, True)
    med.recompute = True
    for name, gradient in gradients(med, 2, True).items():
        assert torch.equal(gradient, kept[name])


def test_image_keys_are_projected_once_an_image_however_many_its_captions() -> None:
    med = made()
    seen: list[tuple[int, ...]] = []
    key = med.text_decoder.bert.encoder.layer[0].crossattention.self.key
    key.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    med.decode(texts(10, DEC)[0], med.encode_image(pictures(2)), 5)
    assert seen == [(2, 17, 32)]


def test_captions_that_do_not_belong_to_the_images_are_refused(med: Med) -> None:
    states = med.encode_image(pictures(2))
    ids, mask = texts(5, DEC)
    with pytest.raises(InputError, match="5 captions are not 2 for each of 2"):
        med.decode(ids, states, 2)
    with pytest.raises(InputError, match="5 texts cannot be shared equally by 2"):
        med.match(ids, mask, states)


# Masks


@torch.no_grad()
def test_padding_changes_nothing(med: Med) -> None:
    states = med.encode_image(pictures(4))
    ids, mask = texts(4, ENC)
    longer = torch.cat([ids, torch.randint(7, 60, (4, 5))], dim=1)  # whatever stands there
    wide = torch.cat([mask, torch.zeros(4, 5, dtype=torch.bool)], dim=1)
    ours, padded = med.match(ids, mask, states), med.match(longer, wide, states)
    assert_close(ours, padded)
    ours, padded = med.encode_text(ids, mask), med.encode_text(longer, wide)[:, :9]
    assert_close(ours[mask], padded[mask])
    ours, padded = med.decode(ids, states), med.decode(longer, states)[:, :9]
    assert_close(ours, padded)


@torch.no_grad()
def test_the_decoder_does_not_look_ahead_and_the_encoder_does(med: Med) -> None:
    states = med.encode_image(pictures(1))
    ids, _ = texts(1, DEC)
    mask = torch.ones_like(ids, dtype=torch.bool)
    other = ids.clone()
    other[0, 5] += 1
    before, after = med.decode(ids, states), med.decode(other, states)
    assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3
    assert (med.encode_text(ids, mask)[:, 0] - med.encode_text(other, mask)[:, 0]).abs().max() > 0


# Beginning


@pytest.mark.parametrize("use", ["image", "text", "match", "rows", "decode"])
def test_bf16_is_fp32_but_for_its_rounding(med: Med, use: str) -> None:
    med = copy.deepcopy(med)

    def found(half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        med.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, half):
            states = med.encode_image(pictures(3))
            if use == "image":
                out = states
            elif use == "text":
                out = med.encode_text(*texts(6, CLS))
            elif use == "decode":
                out = med.decode(texts(6, DEC)[0], states, captions_per_image=2)
            else:
                rows = torch.tensor([2, 0, 1, 1, 0, 2]) if use == "rows" else None
                out = med.match(*texts(6, ENC), states, rows)
        out.float().square().mean().backward()  # type: ignore[no-untyped-call]  # torch's own
        tower = (
            med.vision_model.encoder.layers if use == "image" else med.text_encoder.encoder.layer
        )
        own = tower[0].self_attn.qkv if use == "image" else tower[0].attention.self.value
        if use == "decode":
            own = med.text_decoder.bert.encoder.layer[0].attention.self.value
        return out.detach().float(), own.weight.grad

    for half, full in zip(found(True), found(False), strict=True):
        assert 0 < (half - full).norm() < 0.1 * full.norm()


def test_a_new_model_is_a_function_of_its_seed_and_touches_no_other_draws() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = Med.new(config(), 1), Med.new(config(), 1), Med.new(config(), 2)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [dict(m.named_parameters()) for m in (one, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(one.itm_head.weight, other.itm_head.weight)


def test_image_weights_start_away_from_zero_and_positions_as_sines() -> None:
    med = Med.new(config(), 1)
    weight = med.vision_model.encoder.layers[0].self_attn.qkv.weight.detach()
    assert 0.015 < float(weight.std()) < 0.025
    positions = med.vision_model.embeddings.position_embedding.detach()[0, 1:]
    assert_close(positions, position_sines(4, 32)[0])
    # sin² + cos² of row and of column: each wave has unit amplitude.
    torch.testing.assert_close(positions.square().sum(1), torch.full((16,), 16.0))
    plain = Med.new(config(), 1, sines=False).vision_model.embeddings.position_embedding
    assert float(plain.detach().abs().max()) < 0.2
    assert config().vision_config.initializer_range != 0.02  # the caller's configuration is its own
    with pytest.raises(InputError, match="width 30"):
        position_sines(4, 30)


def test_other_sides_interpolate_the_positions(tmp_path: Path) -> None:
    med = made()
    before = med.vision_model.embeddings.position_embedding.detach().clone()
    med.resize(48)
    assert med.encode_image(pictures(1, 48)).shape == (1, 37, 32)
    positions = med.vision_model.embeddings.position_embedding
    assert torch.equal(positions[:, :1], before[:, :1])
    # A wider grid over the same field: the mean position stays about where it was.
    assert float((positions[:, 1:].mean(1) - before[:, 1:].mean(1)).detach().abs().max()) < 0.15
    med.export_captioner(tmp_path)
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path)
    theirs = loaded.vision_model(pictures(1, 48)).last_hidden_state
    torch.testing.assert_close(med.encode_image(pictures(1, 48)), theirs)
    with pytest.raises(InputError, match="50 pixels"):
        med.resize(50)


# Folders


def same_weights(one: Med, other: Med) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_saving_and_loading_gives_the_same_model_shared_as_before(med: Med, tmp_path: Path) -> None:
    med.save(tmp_path)
    loaded = Med.load(tmp_path)
    assert same_weights(med, loaded)
    assert len(list(loaded.parameters())) == len(list(med.parameters()))
    size = sum(p.numel() for p in med.parameters()) * 4
    assert size < (tmp_path / "med.safetensors").stat().st_size < size * 1.2 + 20_000


def test_equal_weights_are_equal_files(med: Med, tmp_path: Path) -> None:
    for name in ("a", "b"):
        med.save(tmp_path / name)
    one, other = ((tmp_path / name / "med.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


def test_state_dict_goes_round_with_its_shares(med: Med) -> None:
    other = Med.new(config(), 7)
    other.load_state_dict(copy.deepcopy(med.state_dict()))
    assert same_weights(med, other)
    layer = (m.encoder.layer[0] for m in (other.text_encoder, other.text_decoder.bert))
    first, second = layer
    assert first.crossattention.self.key.weight is second.crossattention.self.key.weight


@pytest.mark.parametrize("what", ["nothing", "torn", "another"])
def test_what_is_no_med_is_refused(med: Med, tmp_path: Path, what: str) -> None:
    if what != "nothing":
        med.save(tmp_path)
    weights = tmp_path / "med.safetensors"
    if what == "torn":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if what == "another":
        file = tmp_path / "config.json"
        told = json.loads(file.read_text())
        told["text_config"]["num_hidden_layers"] = 3
        file.write_text(json.dumps(told))
    with pytest.raises(ModelError, match="not a MED"):
        Med.load(tmp_path)


def test_exports_make_the_model_again(med: Med, tmp_path: Path) -> None:
    med.export_captioner(tmp_path / "captioner")
    med.export_matcher(tmp_path / "matcher")
    again = Med.from_folders(tmp_path / "captioner", tmp_path / "matcher")
    assert torch.equal(again.temperature, torch.tensor(0.07).to(again.temperature))
    assert all(
        torch.equal(weight, med.state_dict()[name])
        for name, weight in again.state_dict().items()
        if name != "temperature"
    )
    assert all(p.requires_grad for p in again.parameters())


def test_folders_of_different_models_need_a_word_on_whose_weights(med: Med, tmp_path: Path) -> None:
    other = made(seed=2)
    med.export_captioner(tmp_path / "captioner")
    other.export_matcher(tmp_path / "matcher")
    folders = tmp_path / "captioner", tmp_path / "matcher"
    with pytest.raises(ModelError, match="not exports of one MED"):
        Med.from_folders(*folders)
    for shared, theirs in (("captioner", med), ("matcher", other)):
        mixed = Med.from_folders(*folders, shared=shared)  # type: ignore[arg-type]  # a str of the loop
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        assert torch.equal(mixed.get_parameter(name), theirs.get_parameter(name))
        name = "text_encoder.embeddings.word_embeddings.weight"
        assert torch.equal(mixed.get_parameter(name), theirs.get_parameter(name))
        own = "encoder.layer.0.attention.self.key.weight"
        encoder, decoder = (f"text_encoder.{own}", f"text_decoder.bert.{own}")
        assert torch.equal(mixed.get_parameter(encoder), other.get_parameter(encoder))
        assert torch.equal(mixed.get_parameter(decoder), med.get_parameter(decoder))
        assert torch.equal(mixed.itm_head.weight, other.itm_head.weight)


@pytest.mark.parametrize("given", ["captioner", "matcher"])
def test_one_folder_is_enough_to_go_on_with_its_kind(med: Med, tmp_path: Path, given: str) -> None:
    getattr(med, f"export_{given}")(tmp_path)
    folders = (tmp_path, None) if given == "captioner" else (None, tmp_path)
    again, same = (Med.from_folders(*folders, seed=3) for _ in range(2))
    assert same_weights(again, same)
    own = "encoder.layer.1.attention.self.query.weight"
    encoder = again.get_parameter(f"text_encoder.{own}")
    assert torch.equal(encoder, again.get_parameter(f"text_decoder.bert.{own}"))
    assert encoder is not again.get_parameter(f"text_decoder.bert.{own}")
    for ours, theirs in zip(
        getattr(again, f"{given}_parameters")(),
        getattr(med, f"{given}_parameters")(),
        strict=True,
    ):
        assert torch.equal(ours, theirs) or ours is again.temperature


def test_neither_folder_is_refused() -> None:
    with pytest.raises(InputError, match="captioner, of a matcher, or both"):
        Med.from_folders(None, None)


def test_half_precision_is_for_the_disk(med: Med, tmp_path: Path) -> None:
    for name, dtype in (("whole", torch.float32), ("half", torch.float16)):
        med.export_captioner(tmp_path / name, dtype)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    model, info = BlipForConditionalGeneration.from_pretrained(
        tmp_path / "half", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in med.parameters())  # the model itself is not halved
    weight = med.itm_head.weight.half().float()
    assert not torch.equal(weight, med.itm_head.weight)
    name = "vision_model.post_layernorm.weight"
    assert torch.equal(model.get_parameter(name), med.get_parameter(name).half().float())
