"""The formats of an export: what each reader asks of it, and the promises that all keep."""

import json
import shutil
import subprocess
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import DamageError, InputError
from capfilt.evaluate.pairs import load_pairs
from capfilt.export import ExportConfig, export_dataset, load_manifest, verify_export
from capfilt.export.card import size_category
from capfilt.export.claim import claim
from capfilt.export.formats import FORMATS
from capfilt.export.formats.asking import QUESTION, without_placeholders
from capfilt.export.formats.datacomp import DataCompUids
from capfilt.export.formats.webdataset import WebDataset
from capfilt.export.kept import Kept
from capfilt.export.rows import grouped
from capfilt.export.scores import TABLE, scored_texts
from capfilt.ledger.publish import Publisher
from capfilt.recipe.options import round_flags
from tests.e2e.killing import at_every_step
from tests.e2e.test_damage import capfilt
from tests.inputs.tools import fault_of, rows_of
from tests.unit.test_export import (
    HERE,
    Row,
    a_failure,
    a_row,
    exported,
    pairs_of,
    run_of,
)

HOSTILE = 'a dog <image> <<video>> "q" </script> – 犬'
WORDS = ["a dog", HOSTILE, ""]


def some_rows(count: int = 23) -> list[Row]:
    """Return rows of every kind: failed, with no text kept, one, several."""
    return [
        a_failure(n) if n % 7 == 3 else a_row(n, n % 4 != 1, [n % 2 == 0, n % 3 == 0], WORDS[n % 3])
        for n in range(count)
    ]


ROWS = some_rows()
PAIRS = pairs_of(ROWS)
KEPT_KEYS = list(dict.fromkeys(key for key, *_ in PAIRS))


def config_of(label: str, **more: Any) -> ExportConfig:
    small = {"target_bytes": 5000, "row_group_rows": 4}
    return ExportConfig(format=FORMATS[label](), **{**small, **more})


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files of an export, but what a process has of its own."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {n: path.read_bytes() for n, path in names.items() if not n.startswith(".tmp/")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    for label in FORMATS:
        exported(root / label, ROWS, config_of(label))
    return root


@pytest.mark.parametrize("label", FORMATS)
def test_every_byte_is_the_same_however_the_rows_are_cut(
    label: str, written: Path, tmp_path: Path
) -> None:
    whole = files_in(written / label)
    assert files_in(exported(tmp_path, ROWS, config_of(label), [3, 4, 11])) == whole
    assert {"README.md", "croissant.json", "scores.parquet", "manifest.json"} <= set(whole)
    assert verify_export(tmp_path) == []
    exported(tmp_path, ROWS, config_of(label), [9])  # a second export writes nothing
    assert files_in(tmp_path) == whole


@pytest.mark.parametrize("label", FORMATS)
def test_nothing_kept_is_an_export_too(label: str, tmp_path: Path) -> None:
    folder = exported(tmp_path, [a_failure(1), a_row(2, False, [False])], config_of(label))
    assert verify_export(folder) == []
    assert load_manifest(folder)["rows"] == 0


@pytest.mark.parametrize("label", ["llava", "energon"])
def test_a_killed_export_goes_on(label: str, tmp_path: Path) -> None:
    rows, config = ROWS[:8], config_of(label, target_bytes=1500)
    whole = files_in(exported(tmp_path / "whole", rows, config))
    folder = tmp_path / "killed"

    def look() -> None:
        assert not (folder / "manifest.json").exists() or verify_export(folder) == []

    assert at_every_step(lambda: exported(folder, rows, config), look) > 10
    assert files_in(folder) == whole


@pytest.mark.parametrize("label", ["llava", "energon", "datacomp-uids"])
def test_several_writers_share_the_files(label: str, written: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda cut: exported(tmp_path, ROWS, config_of(label), [cut]), range(4)))
    assert files_in(tmp_path) == files_in(written / label)


def test_damage_to_pictures_is_found_and_refused(written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written / "llava", tmp_path / "e"))
    altered, missing, *_ = sorted((folder / "images").glob("*/*.jpg"))
    altered.write_bytes(altered.read_bytes() + b"x")
    missing.unlink()
    foreign = altered.with_name(f"{'a' * 32}.jpg")
    foreign.write_bytes(b"x")
    found = {(p.kind, p.path) for p in verify_export(folder)}
    assert found == {
        ("damaged", str(altered)),
        ("missing", str(missing)),
        ("foreign", str(foreign)),
    }
    with pytest.raises(DamageError, match="--repair"):
        exported(folder, ROWS, config_of("llava"))
    assert len(capfilt("verify", folder, "--repair", "--quiet").err) == 0
    exported(folder, ROWS, config_of("llava"))
    assert verify_export(folder) == []
    shutil.rmtree(folder / "damaged")
    assert files_in(folder) == files_in(written / "llava")
    foreign.write_bytes(b"x")
    sums = sorted((folder / "images").glob("*.sha256"))
    sums[0].write_text("../../etc/passwd\n")
    kinds = Counter(problem.path for problem in verify_export(folder))
    assert kinds[str(sums[0])] == 1
    assert str(foreign) not in kinds  # what lists pictures is damaged itself


def test_another_picture_in_the_way_is_damage(written: Path, tmp_path: Path) -> None:
    place = min((written / "llava" / "images").glob("*/*.jpg")).relative_to(written / "llava")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(b"other")
    with pytest.raises(DamageError, match=f"{place.name} is damaged"):
        exported(tmp_path, ROWS, config_of("llava"))


def test_another_format_replaces_all_files(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    for label in FORMATS:
        claim(publisher, label, replace=True)
        export_dataset(run_of(ROWS), publisher, config_of(label), HERE, export=label)
        alone = exported(tmp_path.with_name(f"{tmp_path.name}.{label}"), ROWS, config_of(label))
        assert set(files_in(tmp_path)) == set(files_in(alone))


def test_sums_are_those_of_sha256sum(written: Path) -> None:
    sums = sorted(p.relative_to(written / "llava") for p in (written / "llava").glob("images/*.s*"))
    assert len(sums) > 2
    told = subprocess.run(
        ["sha256sum", "-c", *map(str, sums)],
        cwd=written / "llava",
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(set(told.stdout.splitlines())) == len(KEPT_KEYS)


# --- WebDataset and Energon


def samples_of(folder: Path) -> list[dict[str, bytes]]:
    """Return the members of all tars by suffix, as a reader of streams groups them."""
    samples: list[dict[str, bytes]] = []
    for tar in sorted((folder / "data").glob("*.tar")):
        last = None
        with tarfile.open(tar, mode="r|") as opened:
            for member in opened:
                key, _, suffix = member.name.partition(".")
                if key != last:
                    samples.append({"__key__": key.encode()})
                assert suffix not in samples[-1]
                stream = opened.extractfile(member)
                samples[-1][suffix] = stream.read() if stream else b""
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                last = key
    return samples


@pytest.mark.parametrize("label", ["webdataset", "energon"])
def test_a_sample_is_an_image_with_all_its_texts(label: str, written: Path) -> None:
    samples = samples_of(written / label)
    assert [s["__key__"].decode() for s in samples] == KEPT_KEYS  # each once, over all tars
    rows = {row["key"]: row for row in ROWS}
    for sample in samples:
        assert set(sample) == {"__key__", "jpg", "txt", "json"}
        row, told = rows[sample["__key__"].decode()], json.loads(sample["json"])
        assert sample["jpg"] == row["image"]
        kept = [text for key, text, *_ in PAIRS if key == row["key"]]
        assert sample["txt"].decode() == told["text"] in kept
        assert [t["text"] for t in told["texts"] if t["kept"]] == kept
        assert [t["text"] for t in told["texts"]] == [row["caption"], *row["captions"]]
        assert (told["web"] in kept) if row["keep_web"] else told["web"] == ""
        own = [t for t, keep in zip(row["captions"], row["keep_captions"], strict=True) if keep]
        assert told["synthetic"] == (own[-1] if own else "")  # later ones score higher here
    sizes = json.loads((written / label / "data/sizes.json").read_text())
    assert sum(sizes.values()) == len(samples)
    assert set(sizes) == {tar.name for tar in (written / label / "data").glob("*.tar")}


def test_the_one_text_is_drawn_evenly_and_not_by_score(tmp_path: Path) -> None:
    rows = [a_row(n, True, [True, True]) for n in range(300)]
    folder = exported(tmp_path, rows, config_of("webdataset", target_bytes=10**9))
    drawn = Counter(json.loads(s["json"])["caption_index"] for s in samples_of(folder))
    assert set(drawn) == {None, 0, 1}
    assert min(drawn.values()) > 70


def test_carried_columns_and_scores_that_are_no_numbers_are_json(tmp_path: Path) -> None:
    row = a_row(1, True, [True])
    row["itm_score"], row["caption_itm_scores"] = float("nan"), [float("inf")]
    kept = Kept("kept-1", ("web", "n"), ("string", "list:double"))
    config = ExportConfig(format=WebDataset(), kept=kept)

    def carried(shard: str, keys: Any) -> Any:
        return config.carried.empty_table().from_pylist(
            [{"input_web": "w", "n": [1.0, float("nan")]}] * len(keys), config.carried
        )

    export_dataset(run_of([row]), Publisher(tmp_path), config, HERE, carried=carried)
    (sample,) = samples_of(tmp_path)
    told = json.loads(sample["json"], parse_constant=pytest.fail)  # NaN is no JSON
    assert (told["input_web"], told["n"], told["itm_score"]) == ("w", [1.0, None], None)
    assert "Carried from the input: `input_web`, `n`." in (tmp_path / "README.md").read_text()


def test_what_energon_makes_is_no_damage_and_goes_with_the_export(tmp_path: Path) -> None:
    folder = exported(tmp_path, ROWS, config_of("energon"))
    counts = json.loads((folder / ".nv-meta/.info.json").read_text())["shard_counts"]
    split = json.loads((folder / ".nv-meta/split.yaml").read_text())["split_parts"]
    assert split == {"train": list(counts)}
    assert sum(counts.values()) == len(KEPT_KEYS)
    theirs = [folder / f"{name}.idx" for name in counts]
    theirs += [folder / ".nv-meta/index.sqlite", folder / ".nv-meta/index.uuid"]
    for file in theirs:
        file.write_bytes(b"index")
    assert verify_export(folder) == []
    exported(folder, ROWS, config_of("energon"))
    claim(Publisher(folder), "other", replace=True)
    assert not any(file.exists() for file in theirs)


# --- lists, conversations, uids


def listed(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "data").iterdir()
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="ascii"))
    return found


@pytest.mark.parametrize(
    ("label", "text"), [("llava", ""), ("blip-json", "caption"), ("lavis", "text_output")]
)
def test_lists_name_pictures_that_are_there(label: str, text: str, written: Path) -> None:
    found = listed(written / label)
    assert len(found) == len(PAIRS)
    images = {row["key"]: row["image"] for row in ROWS}
    for each, (key, said, *_) in zip(found, PAIRS, strict=True):
        assert (written / label / each["image"]).read_bytes() == images[key]
        if text:
            assert each[text] == said
    pictures = list((written / label / "images").glob("*/*"))
    assert len(pictures) == len(KEPT_KEYS)  # one file an image, whatever its texts


def test_a_conversation_asks_for_one_picture_whatever_its_text_says(written: Path) -> None:
    found = listed(written / "llava")
    assert len({each["id"] for each in found}) == len(found)
    for each in found:
        said = "".join(turn["value"] for turn in each["conversations"])
        assert said.count("<image>") == 1
        assert "<video>" not in said
        assert [turn["from"] for turn in each["conversations"]] == ["human", "gpt"]
        assert each["conversations"][0]["value"] == f"<image>\n{QUESTION}"
    assert any("(image)" in each["conversations"][1]["value"] for each in found)
    assert without_placeholders("<<image>image>") == "<(image)image>"


def test_messages_have_a_picture_each(written: Path) -> None:
    files = sorted((written / "messages" / "data").iterdir())
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(rows) == len(PAIRS)
    images = {row["key"]: row["image"] for row in ROWS}
    for row, (key, text, *_) in zip(rows, PAIRS, strict=True):
        assert [image["bytes"] for image in row["images"]] == [images[key]]
        assert row["messages"] == [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": without_placeholders(text)},
        ]


@pytest.mark.parametrize("label", ["messages", "llava", "lavis"])
def test_instructions_are_the_questions(label: str, tmp_path: Path) -> None:
    folder = exported(tmp_path, ROWS, config_of(label, instructions=("Say <image>:", "Tell:")))
    if label == "messages":
        files = sorted((folder / "data").iterdir())
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        asked = {row["messages"][0]["content"] for row in rows}
    elif label == "llava":
        asked = {e["conversations"][0]["value"].split("\n", 1)[1] for e in listed(folder)}
    else:
        asked = {each["text_input"] for each in listed(folder)}
    assert asked == {"Say (image):", "Tell:"}


def test_uids_are_as_datacomp_makes_them(written: Path) -> None:
    (file,) = (written / "datacomp-uids" / "data").iterdir()
    halves = [(int(key[:16], 16), int(key[16:32], 16)) for key in KEPT_KEYS]
    theirs = np.sort(np.array(halves, np.dtype("u8,u8")))  # as its README has it
    found = np.load(file)
    assert found.dtype == theirs.dtype
    assert found.tolist() == theirs.tolist()


@pytest.mark.parametrize("good", [True, False])
def test_uids_are_those_of_the_input_where_it_has_them(good: bool, tmp_path: Path) -> None:
    kept = Kept("kept-1", ("uid",), ("string",))
    config = ExportConfig(format=DataCompUids(), kept=kept)
    uid = "f" * 15 + "e" + "0" * 16 if good else "no hex"

    def carried(shard: str, keys: Any) -> Any:
        return config.carried.empty_table().from_pylist([{"uid": uid}] * len(keys), config.carried)

    def write() -> None:
        export_dataset(run_of(ROWS), Publisher(tmp_path), config, HERE, carried=carried)

    if not good:
        with pytest.raises(InputError, match="no 32 hex digits"):
            write()
        return
    write()
    (file,) = (tmp_path / "data").iterdir()
    assert np.load(file).tolist() == [(int(uid[:16], 16), 0)]  # once


# --- what lies beside


def test_the_table_of_scores_has_a_row_a_text(written: Path) -> None:
    file = pq.ParquetFile(written / "llava" / "scores.parquet")
    assert file.schema_arrow == TABLE
    rows = file.read().to_pylist()
    assert [row["key"] for row in rows if row["origin"] == "web"] == [row["key"] for row in ROWS]
    kept = [(r["key"], r["text"], r["origin"], r["caption_index"]) for r in rows if r["kept"]]
    assert kept == [pair[:4] for pair in PAIRS]
    assert len(rows) == sum(1 + len(row["captions"] or []) for row in ROWS)
    by_key = {row["key"]: row for row in ROWS}
    for row in rows:
        whole = by_key[row["key"]]
        assert (row["url"], row["reason"]) == (whole["url"], whole["reason"])
        scores = whole["caption_itm_scores"]
        index = row["caption_index"]
        assert row["itm_score"] == (whole["itm_score"] if index is None else scores[index])
        assert row["similarity"] is row["dup_of"] is None


def test_optional_columns_are_in_the_table_of_scores() -> None:
    rows = [a_row(1, True, [True, False]), a_row(2, False, [])]
    table = run_of(rows).tables["shard0"]
    for name, values in (
        ("similarity", [0.5, 0.25]),
        ("caption_similarities", [[0.125, 0.75], []]),
        ("dup_of", [None, "abc"]),
    ):
        table = table.append_column(name, [values])
    found = scored_texts(table)
    assert found["similarity"].to_pylist() == [0.5, 0.125, 0.75, 0.25]
    assert found["dup_of"].to_pylist() == [None, None, None, "abc"]


def test_parquet_has_a_page_index_and_small_groups(written: Path) -> None:
    for label in ("parquet", "messages"):
        for path in sorted((written / label / "data").iterdir()):
            footer = pq.ParquetFile(path).metadata
            for number in range(footer.num_row_groups):
                group = footer.row_group(number)
                assert group.num_rows <= 4
                assert group.column(0).has_offset_index
                assert group.column(0).has_column_index


def test_large_images_close_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capfilt.export.rows._GROUP_BYTES", 10)
    sizes = [4, 4, 4, 11, 1, 9, 1, 1, 1, 1]
    whole = pa.table({"image": [{"bytes": b"x" * size, "path": ""} for size in sizes]})
    expected = [[4, 4], [4], [11], [1, 9], [1, 1, 1], [1]]
    for step in (1, 3, 10):
        parts = [whole.slice(start, step) for start in range(0, len(sizes), step)]
        cut = list(grouped(parts, whole.slice(0, 0), 3))
        lengths = [[len(i["bytes"]) for i in t["image"].to_pylist()] for t in cut]
        assert lengths == expected


def test_the_card_tells_the_hub(tmp_path: Path) -> None:
    folder = exported(tmp_path, ROWS, config_of("webdataset", license="cc-by-4.0"))
    card = (folder / "README.md").read_text()
    assert card.startswith(
        "---\nlicense: cc-by-4.0\ntask_categories:\n- image-to-text\nsize_categories:\n- n<1K\n"
        "configs:\n"
    )
    assert json.loads((folder / "croissant.json").read_text())["license"] == "cc-by-4.0"
    for wrong in ("", "a b", "mit\nconfigs: x", "[x]"):
        with pytest.raises(InputError, match="no name of a licence"):
            ExportConfig(license=wrong)
    named = {0: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 10**6: "1M<n<10M", 10**12: "n>1T"}
    assert {rows: size_category(rows) for rows in named} == named


def test_help_tells_of_every_format() -> None:
    for label, kind in FORMATS.items():
        assert kind.label == label
        assert f"{label}: {kind.told}" in round_flags()["format"].help


def test_an_export_is_an_input_of_a_next_run_and_its_scores_are_not(written: Path) -> None:
    webs = sum(row["keep_web"] for row in ROWS)
    bare = sum(not row["keep_web"] and any(row["keep_captions"] or ()) for row in ROWS)
    assert len(rows_of(written / "parquet")) == webs + bare
    for label in ("llava", "datacomp-uids", "webdataset"):
        told = fault_of(written / label)
        assert "an export whose format is no input; " in told
    assert load_pairs(str(written / "parquet")).count == len(PAIRS)
