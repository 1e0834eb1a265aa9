import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import InputError, ModelError
from capfilt.export.formats import Parquet
from capfilt.export.instructions import INSTRUCTBLIP
from capfilt.models.checkpoints import EMBEDDED_FOLDER as MODELS
from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import Beam, Lengths, Nucleus
from capfilt.recipe.options import (
    RoundOptions,
    build_round,
    default_round,
    round_flags,
    warnings_of,
)
from capfilt.recipe.pipeline_file import load_pipeline, shipped_pipelines
from capfilt.recipe.round import Round
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.policies.blip import Select

PIPELINE = """
import dataclasses
from capfilt.models.recipe import Beam
from capfilt.recipe.options import default_round
BASE = default_round()
CAPTION = dataclasses.replace(BASE.caption, decoding=Beam(4, 1.3), seed=9)
ROUND = dataclasses.replace(BASE, caption=CAPTION, dedup=None, shard_rows=7)
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(PIPELINE)
    return str(file)


def built(**given: Any) -> Round:
    return build_round(RoundOptions(**given))


def test_no_options_are_the_round_of_the_embedded_models() -> None:
    assert built() == default_round()
    assert default_round().caption.model.name == "embedded"
    assert dict(RoundOptions()) == {}


# An option, a value, and where in the round it lands.
PLACES: list[tuple[str, Any, str]] = [
    ("num_captions", 3, "caption.num_captions"),
    ("top_p", 0.5, "caption.decoding.top_p"),
    ("top_k", 0, "caption.decoding.top_k"),
    ("temperature", 0.7, "caption.decoding.temperature"),
    ("repetition_penalty", 1.5, "caption.decoding.repetition_penalty"),
    ("beams", 4, "caption.decoding.num_beams"),
    ("min_length", 0, "caption.lengths.min_length"),
    ("max_length", 30, "caption.lengths.max_length"),
    ("prompt", "", "caption.prompt"),
    ("seed", 0, "caption.seed"),
    ("precision", "bf16", "caption.precision"),
    ("precision", "bf16", "matching.precision"),
    ("itm_token", "cls", "matching.itm_token"),
    ("dedup", "phash", "dedup.method"),
    ("dedup_radius", 0, "dedup.radius"),
    ("dedup_similarity", 0.9, "dedup.similarity"),
    ("threshold", 0.0, "select.threshold"),
    ("image_size", 256, "fetch.resize.image_size"),
    ("resize_mode", "border", "fetch.resize.resize_mode"),
    ("min_image_size", 9, "fetch.resize.min_image_size"),
    ("max_aspect_ratio", 3.0, "fetch.resize.max_aspect_ratio"),
    ("allow_private_hosts", True, "fetch.allow_private_hosts"),
    ("max_bytes", 1000, "fetch.max_bytes"),
    ("timeout", 1.5, "fetch.timeout"),
    ("total_timeout", 9.0, "fetch.total_timeout"),
    ("threads", 2, "fetch.threads"),
    ("host_requests", 1, "fetch.host_requests"),
    ("proxy", "http://proxy.example:3128", "fetch.proxy"),
    ("user_agent", "agent/1", "fetch.user_agent"),
    ("referer", "origin", "fetch.referer"),
    ("origins", "web", "select.origins"),
    ("license", "mit", "export.license"),
    ("shard_rows", 10, "shard_rows"),
]


def test_every_option_is_tried_here() -> None:
    elsewhere = {"pipeline", "captioner", "matcher", "file_mb", "instructions", "format"}
    elsewhere |= {"policy", "scorer", "score", "fraction", "keep_texts"}  # tests/test_policies.py
    elsewhere |= {"web_share", "score_temperature", "text_cap", "mix_seed"}  # tests/stages/test_mix
    assert {name for name, _, _ in PLACES} | elsewhere == set(round_flags())


@pytest.mark.parametrize(("name", "value", "place"), PLACES, ids=str)
def test_an_option_lands_in_its_place_and_nowhere_else(name: str, value: Any, place: str) -> None:
    changed = built(**{name: value})
    at: Any = changed
    for part in place.split("."):
        at = getattr(at, part)
    assert at == value
    base = default_round()
    touched = {
        field.name
        for field in dataclasses.fields(Round)
        if getattr(changed, field.name) != getattr(base, field.name)
    }
    both = {"caption", "matching"}  # one precision for both models
    assert touched <= (both if name == "precision" else {place.partition(".")[0]})


def test_megabytes_are_millions_of_bytes() -> None:
    assert built(file_mb=3).export.target_bytes == 3_000_000


def test_a_format_is_chosen_by_name_or_from_a_file(tmp_path: Path) -> None:
    assert built(format="parquet").export.format == Parquet()
    own = shutil.copy(Path(__file__).parents[2] / "examples/own_export.py", tmp_path)
    assert built(format=f"{own}:JsonLines").export.format.suffix == "jsonl"
    with pytest.raises(
        InputError, match=r"no export format 'csv'; give one of parquet, .*, or FILE"
    ):
        built(format="csv")
    with pytest.raises(InputError, match="defines no Parquet that is a ExportFormat"):
        built(format=f"{own}:Parquet")
    Path(own).write_text(Path(own).read_text().replace('"jsonl"', '"../x"'))
    with pytest.raises(InputError, match=r"its suffix is '\.\./x'"):
        built(format=f"{shutil.copy(own, tmp_path / 'other.py')}:JsonLines")


def test_instructions_are_the_papers_or_lines_of_a_file(tmp_path: Path) -> None:
    assert built(instructions="instructblip").export.instructions == INSTRUCTBLIP
    file = tmp_path / "mine.txt"
    file.write_text("Describe it.\n\n  Say what you see: \n")
    found = built(instructions=str(file)).export.instructions
    assert found == ("Describe it.", "Say what you see:")
    file.write_text("\n")
    with pytest.raises(InputError, match="no line"):
        built(instructions=str(file))
    with pytest.raises(InputError, match="an instruction a line"):
        built(instructions=str(tmp_path / "none.txt"))


def test_models_are_resolved_by_role(tiny_pair: tuple[Path, Path]) -> None:
    captioner, matcher = map(str, tiny_pair)
    recipe = built(captioner=captioner, matcher=matcher)
    assert recipe.caption.model == resolve_model(captioner, "captioner")
    assert recipe.matching.model == resolve_model(matcher, "matcher")


def test_the_folder_that_a_training_left_is_a_captioner_and_a_matcher() -> None:
    for role in ("captioner", "matcher"):
        shipped = resolve_model(str(MODELS), role)
        assert shipped.path == str(MODELS / role)
        assert shipped.digest == resolve_model("embedded", role).digest


def test_a_pipeline_is_the_base_that_options_change(pipeline: str) -> None:
    assert built(pipeline=pipeline) == load_pipeline(pipeline)
    changed = built(pipeline=pipeline, seed=0, threshold=0.25)
    assert changed.caption.seed == 0
    assert changed.select == Select(threshold=0.25)
    assert changed.caption.decoding == Beam(4, 1.3)
    assert (changed.shard_rows, changed.dedup) == (7, None)


def test_decoding_follows_the_options_of_either_kind(pipeline: str) -> None:
    def decoding(**given: Any) -> Nucleus | Beam:
        return built(pipeline=pipeline, **given).caption.decoding

    assert decoding(beams=2) == Beam(2, 1.3)
    assert decoding(repetition_penalty=1.0) == Beam(4, 1.0)
    assert decoding(top_p=0.5) == Nucleus(top_p=0.5)
    assert decoding(top_k=0) == Nucleus(top_k=0)
    assert built(beams=2).caption.decoding == Beam(2)


def test_dedup_is_switched_on_and_off(pipeline: str) -> None:
    assert built(dedup="none").dedup is None
    assert built(pipeline=pipeline).dedup is None
    assert built(pipeline=pipeline, dedup="sha256").dedup == Dedup("sha256")
    assert built(pipeline=pipeline, dedup_similarity=0.9).dedup == Dedup(similarity=0.9)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_captions": 0}, "num_captions is 0"),
    ({"beams": -1}, "num_beams is -1"),
    ({"beams": 2, "num_captions": 3}, "num_beams is 2"),
    ({"beams": 2, "top_p": 0.5}, "--beams and --top-p exclude each other"),
    ({"beams": 2, "top_k": 0}, "--beams and --top-k exclude each other"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.01}, "top_p is 1.01"),
    ({"top_p": math.nan}, "top_p is nan"),
    ({"top_k": -1}, "top_k is -1"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"repetition_penalty": -1.0}, "repetition_penalty"),
    ({"beams": 2, "repetition_penalty": 0.0}, "repetition_penalty"),
    ({"min_length": 30}, "lengths 30 to 20"),
    ({"shard_rows": 0}, "shard_rows is 0"),
    ({"origins": "nobody"}, "origins is 'nobody'; it must be one of both, web, synthetic"),
    ({"precision": "fp8"}, "precision is 'fp8'"),
    ({"tresh": 1}, "there is no option 'tresh'"),
    ({"treshold": 1}, "did you mean 'threshold'"),
    ({"max_length": 4}, "lengths 5 to 4"),
    ({"dedup_radius": -1}, "radius is -1"),
    ({"dedup_similarity": 1.5}, "similarity is 1.5"),
    ({"threshold": 1.5}, "threshold is 1.5"),
    ({"threshold": math.nan}, "threshold is nan"),
    ({"image_size": 0}, "image_size is 0"),
    ({"max_aspect_ratio": -1.0}, "max_aspect_ratio is -1.0"),
    ({"timeout": 0.0}, "timeout is 0.0"),
    ({"total_timeout": math.nan}, "total_timeout is nan"),
    ({"threads": 0}, "threads is 0"),
    ({"file_mb": 0}, "target_bytes is 0"),
]


@pytest.mark.parametrize(("given", "named"), BAD, ids=str)
def test_a_value_that_cannot_be_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        built(**given)


def test_a_zero_is_told_over_a_pipeline_with_beams_too(pipeline: str) -> None:
    with pytest.raises(InputError, match=r"temperature is 0\.0"):
        built(pipeline=pipeline, temperature=0.0)


@pytest.mark.parametrize("role", ["captioner", "matcher"])
def test_a_model_that_is_not_there_is_named_with_its_role(role: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no folder '{tmp_path}/none' with a {role}"):
        built(**{role: f"{tmp_path}/none"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ROUND = 3\n", "defines no ROUND"),
        ("\n", "defines no ROUND"),
        ("ROUND = (\n", "SyntaxError"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError"),
        ("ROUND = Round()\n", "NameError"),
        ("from capfilt.recipe.round import Round\nROUND = Round()\n", "TypeError"),
        (
            "from capfilt.stages.policies.blip import Select\nSelect(threshold=7)\n",
            "threshold is 7",
        ),
    ],
)
def test_a_pipeline_that_fails_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        load_pipeline(str(file))


@pytest.mark.parametrize("name", ["missing.py", "folder", "notes.txt"])
def test_what_is_no_python_file_is_no_pipeline(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("ROUND = None")
    with pytest.raises(InputError, match=f"{name} is no pipeline file"):
        load_pipeline(str(tmp_path / name))


def test_shipped_pipelines_are_found_by_name() -> None:
    assert set(shipped_pipelines()) == {"blip_base_14m", "blip_large", "blip_large_129m", "demo"}
    assert load_pipeline("demo").shard_rows == 1000
    with pytest.raises(InputError, match="nothing is no pipeline file"):
        load_pipeline("nothing")


def test_a_filter_with_its_captioners_eyes_is_warned_of(tiny_pair: tuple[Path, Path]) -> None:
    own = resolve_model(str(tiny_pair[1]), "matcher")
    recipe = default_round()
    assert warnings_of(recipe) == []
    caption = dataclasses.replace(recipe.caption, model=own)
    matching = dataclasses.replace(recipe.matching, model=own)
    (warning,) = warnings_of(dataclasses.replace(recipe, caption=caption, matching=matching))
    assert "share the same image encoder" in warning


def test_lengths_of_the_default_round_are_the_papers() -> None:
    assert default_round().caption.lengths == Lengths(5, 20)
