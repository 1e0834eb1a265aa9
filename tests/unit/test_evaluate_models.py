"""Evaluating real models on pairs with known truth, as a library and by the command."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.evaluate.models import Settings, evaluate, find_models
from capfilt.evaluate.pairs import load_pairs
from capfilt.models.blip import BlipMatcher
from capfilt.models.checkpoints import EMBEDDED_FOLDER as MODELS
from capfilt.models.checkpoints import resolve_model
from capfilt.simweb.falsehoods import rng_of
from capfilt.simweb.grammar import corrupt, describe
from tests.models.tiny2 import save_clip
from tests.stages.pictures import make_pictures

CAPTIONER, MATCHER = str(MODELS / "captioner"), str(MODELS / "matcher")


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures with two true texts and a false one each, in two files."""
    pictures = make_pictures(33, 40, 1)
    rows = []
    for number, scene in enumerate(pictures.scenes):
        rng, image = rng_of("eval", number), png(pictures.pixels[number])
        true = [describe(scene, rng), describe(scene, rng)]
        texts = [(text, True) for text in true] + [(corrupt(true[0], scene, rng), False)]
        rows += [
            {
                "key": f"{number}",
                "image": {"bytes": image, "path": "x"},
                "text": text,
                "true": ok,
                "origin": "web" if place == 0 else "synthetic",
            }
            for place, (text, ok) in enumerate(texts)
        ]
    folder = tmp_path_factory.mktemp("pairs")
    pq.write_table(pa.Table.from_pylist(rows[:61]), folder / "a.parquet")  # cuts an image in two
    pq.write_table(pa.Table.from_pylist(rows[61:]), folder / "b.parquet")
    return folder


def test_pairs_are_put_together_by_key(data: Path) -> None:
    pairs = load_pairs(str(data), "true")
    assert len(pairs.images) == 40
    assert {len(own) for own in pairs.texts} == {3}
    assert pairs.truth is not None
    assert all(own == [True, True, False] for own in pairs.truth)
    assert pairs.true().count == 80
    assert len(load_pairs(str(data / "*.parquet"), None, 7).images) == 7


def test_pairs_without_a_key_go_by_their_bytes(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data / "a.parquet").drop_columns(["key", "origin"])
    pq.write_table(table.rename_columns(["image", "caption", "true"]), tmp_path / "x.parquet")
    assert len(load_pairs(str(tmp_path / "x.parquet")).images) == 21


def test_what_cannot_be_evaluated_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet file"):
        load_pairs(str(tmp_path / "none"))
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet"):
        load_pairs(str(tmp_path))
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="needs image and one of"):
        load_pairs(str(tmp_path))
    pq.write_table(
        pa.table({"image": [b"x"], "text": pa.array([None], pa.string())}), tmp_path / "x.parquet"
    )
    with pytest.raises(InputError, match=r"no rows to evaluate on \(1 row without a text\)"):
        load_pairs(str(tmp_path))
    with pytest.raises(InputError, match="no column 'true'"):
        load_pairs(str(tmp_path), "true")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("true", pa.array([1, 0]), "column true: is int64; the truth"),
        ("true", pa.array(["true", "false"]), "column true: is string; the truth"),
        ("text", pa.array([1, 2]), "column text: is int64; it must be a string"),
        ("image", pa.array(["a.jpg", "b.jpg"]), "column image: is string; it must be the encoded"),
        ("image", pa.array([{"path": "a"}, {"path": "b"}]), "column image: is struct"),
    ],
)
def test_columns_of_other_types_are_refused(
    tmp_path: Path, column: str, values: pa.Array, said: str
) -> None:
    columns = {"image": pa.array([b"x", b"y"]), "text": pa.array(["a", "b"])}
    pq.write_table(pa.table({**columns, column: values}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=said):
        load_pairs(str(tmp_path), "true" if column == "true" else None)


def test_rows_without_a_key_are_images_of_their_own(tmp_path: Path) -> None:
    keys = pa.array([None, "k", None, "k"], pa.string())
    columns = {"image": [b"x", b"y", b"z", b"y"], "text": ["a", "b", "c", "d"], "key": keys}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert load_pairs(str(tmp_path)).texts == [["a"], ["b", "d"], ["c"]]


def test_a_row_that_cannot_be_judged_costs_itself_and_is_counted(tmp_path: Path) -> None:
    texts = ["a", None, "", " \t", "b", "c", "d"]
    images = [b"x", b"x", b"x", b"y", None, b"", b"z"]
    truth = pa.array([True, True, True, True, True, True, None])
    table = pa.table({"image": pa.array(images, pa.binary()), "text": texts, "true": truth})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    pairs = load_pairs(str(tmp_path), "true")
    assert (pairs.images, pairs.texts, pairs.truth) == ([b"x"], [["a"]], [[True]])
    assert pairs.left_out == {"no_text": 3, "no_image": 2, "no_truth": 1}
    assert load_pairs(str(tmp_path)).texts == [["a"], ["d"]]  # nobody asked for its truth


def test_bad_rows_change_no_figure_of_the_others(data: Path) -> None:
    pairs, asked = load_pairs(str(data), "true", 6), list[int]()
    assert pairs.truth is not None
    assert pairs.origins is not None
    worse = replace(
        pairs,
        images=[pairs.images[0][:60], *pairs.images],
        texts=[["x", "y"], *pairs.texts],
        truth=[[True, False], *pairs.truth],
        origins=[["web", "web"], *pairs.origins],
        left_out={"no_text": 1},
    )
    found = evaluate(worse, find_models(None, MATCHER), Settings(top=3), asked.append)
    assert found.left_out == {"no_text": 1, "undecodable": 2}
    assert "1 row without a text, 2 rows with an image that cannot be decoded" in found.text()
    assert sum(asked) == 6
    same = evaluate(pairs, find_models(None, MATCHER), Settings(top=3), asked.append)
    assert replace(found, left_out={}) == same
    only = replace(worse, images=worse.images[:1], texts=[["x"]], truth=[[True]], origins=[["w"]])
    with pytest.raises(InputError, match="nothing to evaluate on: 1 row without a text, 1"):
        evaluate(only, find_models(None, MATCHER), Settings(), asked.append)


def test_wrong_figures_are_refused(data: Path) -> None:
    with pytest.raises(InputError, match="at most 0 images"):
        load_pairs(str(data), limit=0)
    with pytest.raises(InputError, match="--top -1"):
        Settings(top=-1)
    for threshold in (-0.1, 7.0, float("nan")):
        with pytest.raises(InputError, match="--threshold"):
            Settings(threshold=threshold)


def test_what_no_model_could_answer_is_refused_before_any_is_asked(data: Path) -> None:
    pairs, asked = load_pairs(str(data), "true", 4), list[int]()
    assert pairs.truth is not None
    nothing = replace(pairs, truth=[[False] * len(own) for own in pairs.truth])
    with pytest.raises(InputError, match="no text is true"):
        evaluate(nothing, find_models(None, MATCHER), Settings(), asked.append)
    some = replace(pairs, truth=[[False] * 3, *pairs.truth[1:]])
    with pytest.raises(InputError, match="some images have none"):
        evaluate(some, find_models(CAPTIONER, None), Settings(), asked.append)
    dumb = replace(pairs, texts=[["?"] * 3] * 4)
    with pytest.raises(InputError, match="no text here has one"):
        evaluate(dumb, find_models(CAPTIONER, None), Settings(), asked.append)
    assert not asked


def test_trained_models_are_better_than_chance(data: Path) -> None:
    seen: list[int] = []
    pairs = load_pairs(str(data), "true")
    found = evaluate(pairs, find_models(CAPTIONER, MATCHER), Settings(top=10), seen.append)
    assert sum(seen) == 80  # each image once for each model
    assert found.filter is not None
    assert found.filter.auc > 0.8
    assert found.filter.noise_before == pytest.approx(1 / 3)
    assert found.filter.noise_after < 0.25
    web, own = found.streams["web"], found.streams["synthetic"]
    assert (web.texts, own.texts) == (40, 80)
    assert (web.false, own.false) == (0.0, 0.5)
    assert own.noise > web.noise
    assert own.false_kept is not None
    assert own.false_kept < 0.4
    assert "synthetic: 80 texts" in found.text()
    assert found.retrieval_itc is not None
    assert found.retrieval_itm is not None
    assert found.retrieval_itc.text[10] > 0.9  # chance: a quarter
    assert found.retrieval_itc.text[1] > 0.7  # chance: one in 40
    assert found.retrieval_itm.text[1] > 0.8
    assert found.retrieval_itm.text[10] == found.retrieval_itc.text[10]  # re-ranked within ten
    assert found.captions is not None
    assert found.captions.bleu[0] > 0.4
    assert len(found.written) == 40
    assert "ROC-AUC" in found.text()


def test_text_embeddings_are_those_that_match_uses() -> None:
    images = list(make_pictures(3, 5, 1).pixels)
    matcher = BlipMatcher(resolve_model(MATCHER, "matcher"), "enc")
    texts = ["a red star", "a small blue ring and a large green square on a gray background", "?!"]
    embedded = matcher.embed_texts([*texts, "..."])
    _, itc = matcher.match(images, [texts] * 5)
    assert np.allclose(matcher.embed(images) @ embedded[:3].T, itc, atol=1e-5)
    assert np.abs(np.linalg.norm(embedded[:3], axis=1) - 1).max() < 1e-5
    assert not embedded[3].any()


def test_the_command_tells_machines(data: Path) -> None:
    command = [sys.executable, "-m", "capfilt", "evaluate", str(data), "--matcher", MATCHER]
    options = ["--truth-col", "true", "--limit", "12", "--json", "--quiet"]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    told = json.loads(ran.stdout)
    names = {"images", "texts", "left_out", "retrieval_itc", "retrieval_itm", "filter", "streams"}
    assert set(told) == names
    assert set(told["streams"]) == {"web", "synthetic"}
    assert told["images"] == 12
    nothing = subprocess.run(command[:5], capture_output=True, text=True, check=False)
    assert nothing.returncode == 2
    assert "give --captioner, --matcher or both" in nothing.stderr


def test_a_matcher_that_is_no_blip_is_refused_before_data_are_read(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    with pytest.raises(InputError, match="is no BLIP"):
        find_models(None, str(folder))
