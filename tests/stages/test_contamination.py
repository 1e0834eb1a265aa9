"""Decontamination: pictures and texts of evaluation sets are found, marked, told and left out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt import schema
from capfilt.engine.plan import is_barrier
from capfilt.recipe.options import RoundOptions, build_round
from capfilt.stages.contamination.dropped import dropping
from capfilt.stages.contamination.ngrams import all_ngrams, ngrams, share
from capfilt.stages.contamination.stage import Contamination, EvaluationSet
from capfilt.stages.policies.blip import Select
from capfilt.stages.policies.mixed import Mixed
from capfilt.stages.policies.reasons import ALL_REASONS, TOLD_REASONS
from tests.e2e.test_damage import Outcome, capfilt
from tests.stages.test_policies import Row, as_table, scored

LONG = "a small brown dog runs over the wet green grass"
COUNT = 8


def test_ngrams_are_those_of_the_words_alone() -> None:
    same = ngrams("A small, brown  DOG — runs over the wet green grass!", 8)
    assert len(same) == 3
    assert (same == ngrams(LONG, 8)).all()
    assert len(ngrams("two words", 3)) == len(ngrams(None, 3)) == 0
    assert (ngrams("Straße ﬁne", 2) == ngrams("STRASSE fine", 2)).all()
    held = all_ngrams([LONG, None, "x"], 8)
    assert share(same, held) == 1.0
    assert share(ngrams(f"{LONG} today and tomorrow", 8), held) == 0.5
    assert share(ngrams("x", 8), held) == share(same, all_ngrams([], 8)) == 0.0


# --- what a policy decided, without what is marked


def marked(rows: list[Row], *marks: tuple[str | None, str | None, list[str | None]]) -> pa.Table:
    table = as_table(rows)
    table = table.append_column("key", pa.array([f"{n:032x}" for n in range(len(rows))]))
    for place, name in enumerate(("image_in", "text_in", "captions_in")):
        kind = schema.CONTAMINATION.field(name).type
        table = table.append_column(name, pa.array([mark[place] for mark in marks], kind))
    return table


ROWS = [scored(0.9, 0.9, 0.9, itm_score=0.9, caption_itm_scores=[0.9, 0.9]) for _ in range(6)]
ROWS += [{**ROWS[0], "dup_of": "k"}, scored(0.1, itm_score=0.1, caption_itm_scores=[])]
MARKS: Any = [
    (None, None, [None, None]),
    ("coco", None, [None, None]),
    (None, "coco", [None, None]),
    (None, None, ["coco", "nocaps"]),
    (None, "coco", ["coco", "coco"]),
    (None, None, [None, "coco"]),
    ("coco", None, [None, None]),
    ("coco", "coco", []),
]


def test_marked_pictures_and_texts_are_left_out_and_the_reason_says_so() -> None:
    stage: Any = dropping(Select())
    table = marked(ROWS, *MARKS)
    with stage.open() as transform:
        batch = table.select(list(stage.needs)).combine_chunks().to_batches()[0]
        found = transform(batch)
    found.validate(full=True)
    assert found.schema == schema.SELECT
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (True, [True, True], "kept_both"),
        (False, [False, False], "evaluation_image"),
        (False, [True, True], "kept_synthetic"),
        (True, [False, False], "kept_web"),
        (False, [False, False], "evaluation_text"),
        (True, [True, False], "kept_both"),
        (False, [False, False], "duplicate_image"),
        (False, [], "evaluation_image"),
    ]


def test_a_policy_over_all_shards_is_cleaned_alike() -> None:
    stage: Any = dropping(Mixed(web=1.0))
    assert is_barrier(stage)
    table = marked(ROWS, *MARKS).select(list(stage.needs))
    batches = list(stage.solve(iter([table.slice(0, 3), table.slice(3)])))
    found = [row for batch in batches for row in batch.to_pylist()]
    assert [row["keep_web"] for row in found] == [1, 0, 0, 1, 0, 1, 0, 0]
    assert [row["reason"] for row in found][1:5] == [
        *("evaluation_image", "evaluation_text"),
        *("kept_web", "evaluation_text"),
    ]
    assert set(ALL_REASONS) < set(TOLD_REASONS)


def test_a_round_has_the_stage_and_its_place_is_no_part_of_it() -> None:
    looked = Contamination((EvaluationSet("coco", "1"),))
    recipe = dataclasses.replace(build_round(RoundOptions()), contamination=looked)
    names = [stage.name for stage in recipe.stages()]
    assert names[-2:] == ["contamination", "select_clean"]
    kept = dataclasses.replace(recipe, drop_contaminated=False)
    assert [stage.name for stage in kept.stages()][-2:] == ["contamination", "select"]
    plain = dataclasses.replace(build_round(RoundOptions(dedup="none")), contamination=looked)
    assert "phash" in [stage.name for stage in plain.stages()]


# --- whole runs


def picture(number: int, side: int = 96) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


class World:
    """A run over pictures of which an evaluation set has some, otherwise encoded."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "run"
        (root / "images").mkdir()
        rows = []
        for number in range(COUNT):
            picture(number).save(root / "images" / f"{number}.png")
            text = f"{LONG}, today" if number == 5 else f"picture {number}"
            rows.append({"image": f"{number}.png", "caption": text})
        (root / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (root / "bench").mkdir()
        for number in (2, 3):
            picture(number, 80).save(root / "bench" / f"{number}.jpg", quality=80)
        picture(100).save(root / "bench" / "other.jpg")
        told = [{"image": "other.jpg", "caption": LONG.upper()}]
        told += [{"image": f"{n}.jpg", "caption": f"{n}"} for n in (2, 3)]
        (root / "bench" / "metadata.jsonl").write_text(
            "\n".join(json.dumps({"file_name": t["image"], "text": t["caption"]}) for t in told)
        )

    def run(self, *more: object, verb: str = "run") -> Outcome:
        fixed = ["--run", self.out, "--images-dir", self.root / "images", "--shard-rows", "3"]
        options = [*fixed, "--workers", "1", "--device", "cpu", "--json", *more]
        return capfilt(verb, self.root / "list.jsonl", *map(str, options))

    def result(self, *more: object) -> Any:
        done = self.run("--quiet", *more)
        assert done.code == 0, done.err
        return json.loads(done.out)["result"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


RAW = ("--policy", "raw", "--dedup", "none")


def test_what_stands_in_an_evaluation_set_is_left_out_and_told(world: World) -> None:
    bench = ("--decontaminate", world.root / "bench")
    result = world.result(*RAW, *bench)
    reasons = {reason: count for reason, count in result["funnel"]["reasons"].items() if count}
    assert reasons == {"evaluation_image": 2, "evaluation_text": 1, "kept_web": COUNT - 3}
    assert result["rows"] == COUNT - 3
    assert (result["funnel"]["evaluation_images"], result["funnel"]["evaluation_texts"]) == (2, 1)
    export = Path(result["dataset"])
    table = pq.read_table(export / "scores.parquet").to_pylist()
    assert [row["image_in"] for row in table].count("bench") == 2
    (leaked,) = [row for row in table if row["text_in"]]
    assert (leaked["text_in"], leaked["kept"], leaked["text"][:5]) == ("bench", False, LONG[:5])
    card = (export / "README.md").read_text()
    told = "Evaluation sets: bench; 2 pictures and 1 text stand in them, and are left out"
    assert told in card.replace("\\", "")
    assert str(world.root) not in (export / "manifest.json").read_text()
    sql = "select image_in_bits b, image_in_cosine c from rows where image_in is not null"
    near = json.loads(capfilt("query", world.out, sql, "--json").out)
    assert all(row["b"] <= 8 and row["c"] is None for row in near)
    assert (
        "evaluation sets: 2 pictures and 1 text stand in them" in capfilt("status", world.out).out
    )


def test_such_a_run_goes_on_and_is_verified_exported_and_kept_by_gc(world: World) -> None:
    bench = ("--decontaminate", world.root / "bench")
    planned = json.loads(world.run(*RAW, *bench, verb="plan").out)
    assert any(line["stage"].startswith("contamination") for line in planned["stages"])
    assert not world.out.exists()
    first = world.result(*RAW, *bench)
    files = {path: path.stat().st_mtime_ns for path in (world.out / "stages").rglob("*.parquet")}
    assert world.result(*RAW, *bench)["digest"] == first["digest"]
    assert {p: p.stat().st_mtime_ns for p in (world.out / "stages").rglob("*.parquet")} == files
    planned = json.loads(world.run(*RAW, *bench, verb="plan").out)
    assert {line["shards_missing"] for line in planned["stages"]} == {0}
    assert capfilt("verify", world.out, "--quiet").code == 0
    assert "nothing that may go" in capfilt("gc", world.out).out
    to = world.root / "copy"
    copied = capfilt("export", world.out, "--to", to, "--json", "--quiet")
    assert json.loads(copied.out)["result"]["digest"] == first["digest"]
    marked_only = world.result(*RAW, *bench, "--keep-contaminated")
    assert marked_only["rows"] == COUNT
    assert marked_only["funnel"]["evaluation_images"] == 2
    assert world.result(*RAW)["rows"] == COUNT  # and without looking


def test_with_models_the_embedding_must_agree(world: World) -> None:
    result = world.result("--decontaminate", world.root / "bench", "--threshold", "0")
    sql = "select caption, image_in_bits b, image_in_cosine c from rows where image_in = 'bench'"
    near = json.loads(capfilt("query", world.out, sql, "--json").out)
    assert {row["caption"] for row in near} == {"picture 2", "picture 3"}
    assert all(row["c"] >= 0.98 for row in near)
    assert result["funnel"]["reasons"]["evaluation_image"] == 2


def test_a_set_may_be_pictures_alone_and_there_may_be_several(world: World) -> None:
    (world.root / "bench" / "metadata.jsonl").unlink()
    (world.root / "other").mkdir()
    picture(6).save(world.root / "other" / "x.png")
    sets = ("--decontaminate", world.root / "bench", "--decontaminate", world.root / "other")
    world.result(*RAW, *sets)
    sql = "select caption, image_in, text_in from rows where image_in is not null order by caption"
    assert json.loads(capfilt("query", world.out, sql, "--json").out) == [
        {"caption": f"picture {number}", "image_in": name, "text_in": None}
        for number, name in ((2, "bench"), (3, "bench"), (6, "other"))
    ]


@pytest.mark.parametrize("what", ["missing", "addresses", "twice"])
def test_what_is_no_evaluation_set_is_refused_before_any_work(what: str, world: World) -> None:
    (world.root / "list.csv").write_text("url,caption\nhttp://example.org/a.jpg,a\n")
    sets: dict[str, list[Path]] = {
        "missing": [Path("nowhere")],
        "addresses": [world.root / "list.csv"],
        "twice": [world.root / "bench", world.root / "bench"],
    }
    words = [word for each in sets[what] for word in ("--decontaminate", each)]
    done = world.run(*RAW, *words)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "--decontaminate" in done.err
    assert not (world.out / "stages").exists()
