"""Folders that an export is written to: other exports, strangers' files, kills while replacing."""

import json
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from capfilt.errors import DamageError, InputError
from capfilt.export import ExportConfig, Manifest, export_dataset, load_manifest, verify_export
from capfilt.export.claim import claim
from capfilt.ledger.publish import Publisher
from tests.e2e.killing import at_every_step
from tests.unit.test_export import HERE, a_row, contents, files_of, run_of

ONE = [a_row(number, True, [True]) for number in range(6)]
OTHER = [a_row(number, True, [True], "a cat") for number in range(6)]  # files of the same names
CONFIG = ExportConfig(target_bytes=1500)


def write(folder: Path, name: str, *, replace: bool = False, expected: str = "") -> Manifest:
    publisher = Publisher(folder)
    claim(publisher, name, replace, expected)
    rows = ONE if name == "one" else OTHER
    return export_dataset(run_of(rows), publisher, CONFIG, HERE, export=name)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A folder with a whole export."""
    write(tmp_path / "e", "one")
    return tmp_path / "e"


def state(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in files_of(folder)}


def test_the_same_export_again_changes_nothing(one: Path) -> None:
    before = state(one)
    again = write(one, "one")
    assert state(one) == before
    assert again.digest == load_manifest(one)["digest"]
    write(one, "one", replace=True)  # it is whole: nothing to replace
    assert state(one) == before


def test_another_export_is_refused_and_replaced_as_a_whole_where_asked(one: Path) -> None:
    before = state(one)
    with pytest.raises(
        InputError, match=r"holds another export \(12 rows, digest \w{12}\); give --replace"
    ):
        write(one, "other")
    assert state(one) == before
    said = write(one, "other", replace=True)
    assert verify_export(one) == []
    assert load_manifest(one)["digest"] == said.digest
    write(one.with_name("fresh"), "other")
    assert contents(one) == contents(one.with_name("fresh"))


def test_another_export_in_a_place_is_not_taken_for_the_one_that_was_loaded(one: Path) -> None:
    """`datasets` keeps what it loaded from a folder by the folder's last name."""

    def loaded() -> list[str]:
        cache = str(one.with_name("cache"))
        return list(datasets.load_dataset(str(one), split="train", cache_dir=cache)["text"])

    before = loaded()
    write(one, "other", replace=True)
    texts = [row for file in sorted(contents(one)) for row in _texts(one / file)]
    assert loaded() == texts != before


def _texts(file: Path) -> list[str]:
    texts: list[str] = pq.read_table(file)["text"].to_pylist()
    return texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "mine"),
        ("manifest.json", "{}"),
        ("manifest.json", "no JSON"),
        ("manifest.json", '{"files": []}'),
        ("data/train-00000-of-00001.parquet", "somebody's"),
        ("README.md", "# mine"),
        (".git/HEAD", "ref"),
    ],
)
def test_what_is_no_export_is_refused_and_left_alone(
    tmp_path: Path, name: str, content: str
) -> None:
    file = tmp_path / "e" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    before = state(tmp_path / "e")
    for replace in (False, True):
        with pytest.raises(InputError, match="empty or new folder"):
            write(tmp_path / "e", "one", replace=replace)
    assert state(tmp_path / "e") == before
    with pytest.raises(InputError, match="is a file"):
        write(file, "one")


def test_strangers_files_in_an_export_keep_it_from_being_replaced(one: Path) -> None:
    (one / "data" / "notes.txt").write_text("mine")
    before = state(one)
    with pytest.raises(InputError, match=r"data/notes\.txt, which is of no export"):
        write(one, "other", replace=True)
    assert state(one) == before


def test_an_empty_folder_is_taken_and_an_unfinished_other_export_is_not(tmp_path: Path) -> None:
    (tmp_path / "e" / ".tmp").mkdir(parents=True)
    claim(Publisher(tmp_path / "e"), "one", False)
    with pytest.raises(InputError, match="another export"):
        write(tmp_path / "e", "other")
    assert write(tmp_path / "e", "one").rows == 12


def test_a_damaged_export_is_told_and_replaced(one: Path) -> None:
    first = sorted(contents(one))[0]
    (one / first).write_bytes(b"PAR1 something else PAR1")
    with pytest.raises(DamageError, match=f"{first} is damaged"):
        write(one, "one")
    write(one, "one", replace=True)
    assert verify_export(one) == []
    (one / first).unlink()
    write(one, "one")  # a missing file comes out as it was
    assert verify_export(one) == []


def test_a_file_that_readers_would_take_for_data_is_told(one: Path) -> None:
    shutil.copy(one / sorted(contents(one))[0], one / "data" / "train-00009-of-00010.parquet")
    with pytest.raises(
        DamageError, match=r"train-00009-of-00010\.parquet is no file of this export"
    ):
        write(one, "one")


def test_a_manifest_that_was_changed_is_told(one: Path) -> None:
    manifest = json.loads((one / "manifest.json").read_text())
    changes: list[dict[str, object]] = [{"rows": 99}, {"digest": "0" * 64}, {"provenance": {}}]
    for change in (*changes, {"export": "other"}):
        (one / "manifest.json").write_text(json.dumps(manifest | change))
        assert [problem.kind for problem in verify_export(one)] == ["damaged"]
        with pytest.raises((DamageError, InputError)):
            write(one, "one", expected="one")
    (one / "manifest.json").write_text("{}")
    with pytest.raises(DamageError, match="--repair"):
        write(one, "one", expected="one")
    # Older versions wrote no digest of the manifest: what it says of the files counts.
    for field in ("rows", "digest"):
        unsealed = {k: v for k, v in manifest.items() if k != "sha256"} | {field: 7}
        (one / "manifest.json").write_text(json.dumps(unsealed))
        assert [problem.kind for problem in verify_export(one)] == ["damaged"]
        with pytest.raises(DamageError):
            write(one, "one")


def test_a_kill_while_replacing_leaves_no_mixture(tmp_path: Path) -> None:
    write(tmp_path / "old", "one")
    write(tmp_path / "new", "other")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    assert set(old) == set(new)  # the names do not say whose a file is
    assert not set(old.values()) & set(new.values())
    target = tmp_path / "e"
    shutil.copytree(tmp_path / "old", target)
    seen: set[str] = set()

    def look() -> None:
        there = {data for name, data in state(target).items() if name.startswith("data/")}
        assert not (there & set(old.values()) and there & set(new.values()))
        if (target / "manifest.json").exists():
            assert verify_export(target) == []
            seen.add(load_manifest(target)["export"])
        else:
            assert [problem.kind for problem in verify_export(target)] == ["unfinished"]
            seen.add("cut off")

    def begun_anew() -> None:
        look()
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "old", target)

    def replace() -> None:
        write(target, "other", replace=True)

    kills = at_every_step(replace, begun_anew)
    assert kills > 20
    assert seen == {"one", "cut off", "other"}
    assert contents(target) == new
    shutil.rmtree(target)
    shutil.copytree(tmp_path / "old", target)
    at_every_step(replace, look)  # and each goes on where the one before was killed
    assert contents(target) == new
    assert verify_export(target) == []


def test_a_replacing_that_was_cut_off_is_finished_without_asking_again(tmp_path: Path) -> None:
    write(tmp_path / "old", "one")
    target = tmp_path / "e"
    finished = 0

    def begun_anew() -> None:
        nonlocal finished
        if not (target / "manifest.json").exists():
            write(target, "other")
            assert verify_export(target) == []
            finished += 1
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "old", target)

    shutil.copytree(tmp_path / "old", target)
    at_every_step(lambda: write(target, "other", replace=True), begun_anew)
    assert finished > 10
