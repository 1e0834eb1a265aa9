"""Image processors as releases of transformers wrote them, read as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from capfilt.errors import ModelError
from capfilt.models.checkpoints import resolve_model
from capfilt.models.families import ModelKind
from capfilt.models.preprocessing import preprocessing_of

CLIP = ModelKind.CLIP_MATCHER
SQUASHING = [kind for kind in ModelKind if kind is not CLIP]
OTHER = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
BLIPS: list[dict[str, Any]] = [
    {},
    {"size": 224},
    {"size": {"height": 224, "width": 224}, **OTHER},
    {"size": [96, 96], "resample": 3, "feature_extractor_type": "BlipFeatureExtractor"},
    {"size": {"height": 64, "width": 64}, "do_center_crop": False, "rescale_factor": 1 / 255},
]
CLIPS: list[dict[str, Any]] = [
    {},
    {"size": 224, "crop_size": 224, "do_center_crop": True, "do_resize": True},  # of 2021
    {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, **OTHER},
    {"size": 96, "crop_size": {"height": 96, "width": 96}, "feature_extractor_type": "CLIP"},
]


def save(folder: Path, told: Any, name: str = "preprocessor_config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("told", BLIPS)
@pytest.mark.parametrize("kind", SQUASHING)
@pytest.mark.parametrize("nested", [False, True])
def test_blip_s_are_those_of_transformers(
    told: dict[str, Any], kind: ModelKind, nested: bool, tmp_path: Path
) -> None:
    plain, name = ({"image_processor": told}, "processor_config.json") if nested else (told, None)
    folder = save(tmp_path, plain, name or "preprocessor_config.json")
    theirs = BlipImageProcessorPil.from_pretrained(folder)
    ours = preprocessing_of(folder, kind)
    assert {"height": ours.side, "width": ours.side} == dict(theirs.size)
    assert (list(ours.mean), list(ours.std)) == (list(theirs.image_mean), list(theirs.image_std))
    assert theirs.resample == 3


@pytest.mark.parametrize("told", CLIPS)
@pytest.mark.parametrize("nested", [False, True])
def test_clip_s_are_those_of_transformers(
    told: dict[str, Any], nested: bool, tmp_path: Path
) -> None:
    plain, name = ({"image_processor": told}, "processor_config.json") if nested else (told, None)
    folder = save(tmp_path, plain, name or "preprocessor_config.json")
    theirs = CLIPImageProcessorPil.from_pretrained(folder)
    ours = preprocessing_of(folder, CLIP)
    assert {"shortest_edge": ours.side} == dict(theirs.size)
    assert {"height": ours.side, "width": ours.side} == dict(theirs.crop_size)
    assert (list(ours.mean), list(ours.std)) == (list(theirs.image_mean), list(theirs.image_std))


def test_of_both_files_the_newer_wins_if_it_tells_of_images(tmp_path: Path) -> None:
    save(tmp_path, {"size": 64})
    save(tmp_path, {"processor_class": "Blip2Processor"}, "processor_config.json")  # as 4.46 left
    assert preprocessing_of(tmp_path, ModelKind.BLIP2_CAPTIONER).side == 64
    save(tmp_path, {"image_processor": {"size": 32}}, "processor_config.json")
    assert preprocessing_of(tmp_path, ModelKind.BLIP2_CAPTIONER).side == 32
    assert dict(BlipImageProcessorPil.from_pretrained(tmp_path).size)["height"] == 32


def test_what_a_processor_of_transformers_saves_is_enough(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_pair[0], tmp_path / "t5"))
    expected = preprocessing_of(folder, ModelKind.BLIP_CAPTIONER)
    images = BlipImageProcessorPil.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    BlipProcessor(images, AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    assert resolve_model(str(folder), "captioner").path == str(folder)
    assert preprocessing_of(folder, ModelKind.BLIP_CAPTIONER) == expected


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"size": {"height": 64, "width": 32}}, "takes squares"),
        ({"size": {"shortest_edge": 64}}, "takes squares"),
        ({"size": True}, "takes squares"),
        ({"size": "64"}, "takes squares"),
        ({"do_normalize": False}, "do_normalize false"),
        ({"do_rescale": False}, "do_rescale false"),
        ({"do_resize": False}, "do_resize false"),
        ({"rescale_factor": 1.0}, "rescales by 1.0"),
        ({"rescale_factor": "1/255"}, "rescales by 1/255, not"),
        ({"resample": 2}, "method 2, not bicubic"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "three channels"),
        ({"image_std": [0.5, 0.5, 0]}, "three channels"),
        ({"image_mean": "mean"}, "of numbers"),
        ({"size": 64, "do_center_crop": True, "crop_size": 32}, "crops the centre"),
        ([1, 2], "cannot be read"),
    ],
)
def test_other_preprocessing_is_refused(told: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        preprocessing_of(save(tmp_path, told), ModelKind.BLIP_MATCHER)


@pytest.mark.parametrize(
    "told",
    [
        {"size": 64, "crop_size": 32},
        {"size": {"height": 64, "width": 64}, "crop_size": 64},
        {"size": 64, "crop_size": 64, "do_center_crop": False},
    ],
)
def test_another_crop_is_refused_for_clip(told: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"crops a square|do_center_crop false"):
        preprocessing_of(save(tmp_path, told), CLIP)


def test_no_preprocessing_at_all_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json, nor a processor"):
        preprocessing_of(tmp_path, CLIP)
