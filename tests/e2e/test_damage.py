"""Every file of a run, damaged in every way: told in a line, never used, healed by what is said."""

import hashlib
import io
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from capfilt.cli.app import app
from capfilt.engine.exports import read_record
from capfilt.engine.record import load_record
from capfilt.errors import DamageError
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import read_manifest
from tests.places import local

# img2dataset imports it
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
ROWS, SHARD_ROWS = 18, 6


@dataclass(frozen=True)
class Outcome:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


def capfilt(*words: str | Path) -> Outcome:
    """Run a command in this process; a traceback fails the test."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Outcome(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class Run:
    """A finished run of three shards without models, and the command that made it."""

    folder: Path
    pictures: Path

    def again(self) -> Outcome:
        options = ["--policy", "raw", "--dedup", "sha256", "--shard-rows", str(SHARD_ROWS)]
        place = ["--run", str(self.folder), "--workers", "1", "--json", "--quiet"]
        return capfilt("run", self.pictures, *place, *options)

    def verify(self, *options: str) -> Outcome:
        return capfilt("verify", self.folder, "--quiet", *options)

    def files(self, pattern: str) -> list[Path]:
        return sorted(path for path in self.folder.glob(pattern) if path.is_file())

    def stage(self, name: str) -> str:
        (found,) = (n for n in Ledger(self.folder).stages() if n.rpartition("-")[0] == name)
        return found

    def copy(self, folder: Path) -> "Run":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Run(folder, self.pictures)


def digest_of(done: Outcome) -> str:
    return str(json.loads(done.out)["result"]["digest"])


def write_pictures(file: Path, rows: int) -> None:
    """Write a WebDataset tar: what is local needs no server, and no option to be recognised."""
    with tarfile.open(file, "w") as tar:
        for number in range(rows):
            picture = io.BytesIO()
            Image.new("RGB", (20 + number, 20), (9 * number, 90, 30)).save(picture, "PNG")
            for suffix, data in (("png", picture.getvalue()), ("txt", b"text %d" % number)):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run with two exports, and the digest of its own."""
    folder = tmp_path_factory.mktemp("damage")
    write_pictures(folder / "pictures.tar", ROWS)
    run = Run(folder / "run", folder / "pictures.tar")
    digest = digest_of(run.again())
    export = capfilt("export", run.folder, "--instructions", "instructblip", "--quiet")
    assert export.code == 0, export.err
    assert run.verify().code == 0
    return run, digest


@pytest.fixture
def run(base: tuple[Run, str], tmp_path: Path) -> Run:
    return base[0].copy(tmp_path / "run")


# --- ways of damage

Way = Callable[[Path, Run], None]


def flipped(where: float, mask: int) -> Way:
    def way(file: Path, _: Run) -> None:
        data = bytearray(file.read_bytes())
        data[min(len(data) - 1, int(where * len(data)))] ^= mask
        file.write_bytes(data)

    return way


def cut(share: float) -> Way:
    def way(file: Path, _: Run) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: min(len(data) - 1, int(share * len(data)))])

    return way


def garbage(file: Path, _: Run) -> None:
    file.write_bytes(b"\xff\x00{]" * 40)


def removed(file: Path, _: Run) -> None:
    file.unlink()


def of_another_shard(file: Path, _: Run) -> None:
    other = next(path for path in sorted(file.parent.glob("*.parquet")) if path != file)
    file.write_bytes(other.read_bytes())


def of_another_stage(file: Path, run: Run) -> None:
    same = run.files(f"stages/*/{file.name}")
    file.write_bytes(same[(same.index(file) + 1) % len(same)].read_bytes())


WAYS: dict[str, Way] = {
    "a bit near the start": flipped(0.06, 1),
    "a byte at a third": flipped(0.33, 0xFF),
    "a bit in the middle": flipped(0.5, 0x40),
    "a byte near the end": flipped(0.9, 0xFF),
    "the last byte": flipped(1, 0x40),
    "cut in half": cut(0.5),
    "without its last byte": cut(1),
    "emptied": cut(0),
    "garbage": garbage,
    "removed": removed,
}
SWAPS: dict[str, Way] = {
    "of another shard": of_another_shard,
    "of another stage": of_another_stage,
}
STAGES = ("source", "download", "unjudged", "dedup", "select_raw")
OTHERS = {
    "round": "rounds/*.json",
    "input": "inputs/*.json",
    "export record": "exports/000001-*.json",
    "second export record": "exports/000002-*.json",
    "manifest": "latest/manifest.json",
    "card": "latest/README.md",
    "data": "latest/data/*.parquet",
    "report": "reports/*.html",
}
KINDS = (*STAGES, *OTHERS)


def alone() -> Iterator[tuple[str, str]]:
    """Yield (kind of file, way): every kind in three ways or more, all ways in turn."""
    for number, kind in enumerate(KINDS):
        for step in range(3):
            yield kind, list(WAYS)[(3 * number + step) % len(WAYS)]
        yield from ((kind, way) for way in SWAPS if kind in STAGES)


# Nothing is lost where they are removed, and nothing says that they were there.
UNSEEN = {"report", "export record", "second export record"}


def healed(run: Run, digest: str) -> None:
    """Do what is said, and nothing else, until `run` and `verify` are content."""
    for _ in range(4):
        done = run.again()
        if done.code == 0:
            assert digest_of(done) == digest
            checked = run.verify()
            if checked.code == 0:
                return
            assert checked.code == 3
            said = checked.out
        else:
            assert done.code == 3, done.err
            lines = [line for line in done.err.splitlines() if line.startswith("capfilt: ")]
            assert len(lines) == 1
            assert done.err.endswith(lines[0] + "\n")
            said = lines[0]
        commands = re.findall(r"`capfilt (verify [^`]* --repair)`", said)
        if commands:
            assert capfilt(*shlex.split(commands[0]), "--quiet").code == 3
        else:
            assert "the command that made it" in said or "`capfilt run`" in said, said
    raise AssertionError("what is said does not heal it")


def one_of(run: Run, kind: str) -> Path:
    files = run.files(OTHERS.get(kind) or f"stages/{run.stage(kind)}/*.parquet")
    return files[len(files) // 2]


@pytest.mark.parametrize(("kind", "how"), list(alone()))
def test_damage_is_told_never_used_and_healed(
    base: tuple[Run, str], run: Run, kind: str, how: str
) -> None:
    (WAYS | SWAPS)[how](one_of(run, kind), run)
    unseen = how == "removed" and kind in UNSEEN
    verified = run.verify()
    assert verified.code == (0 if unseen else 3), verified.out
    if kind in STAGES:  # so that `run` must read it
        shutil.rmtree(run.folder / "stages" / run.stage("select_raw"), ignore_errors=True)
        for folder in run.folder.glob("export-*"):
            shutil.rmtree(folder)
    healed(run, base[1])


@pytest.mark.parametrize("how", WAYS)
def test_damage_of_many_files_at_once_is_told_and_healed(
    base: tuple[Run, str], run: Run, how: str
) -> None:
    for kinds in (STAGES, tuple(OTHERS)):
        files = [one_of(run, kind) for kind in kinds]
        for file in files:
            WAYS[how](file, run)
        verified = run.verify()
        assert verified.code == 3, verified.out
        if kinds == STAGES:
            assert all(str(file) in verified.out for file in files)
        healed(run, base[1])


def test_what_is_damaged_is_moved_and_never_deleted(run: Run) -> None:
    file = run.files(f"stages/{run.stage('download')}/*.parquet")[0]
    garbage(file, run)
    for number in (1, 2):
        content = file.read_bytes()
        told = json.loads(run.verify("--repair", "--json").out)
        place = run.folder / "damaged" / f"{file.relative_to(run.folder)}.{number}"
        assert told["moved"] == [{"from": str(file), "to": str(place)}]
        assert place.read_bytes() == content
        assert not file.exists()
        garbage(file, run)


@pytest.mark.parametrize("command", ["status", "export", "retry", "gc"])
def test_other_verbs_tell_damage_in_a_line_too(run: Run, command: str) -> None:
    for pattern in ("rounds/*.json", "inputs/*.json", "exports/000001-*.json"):
        file = run.files(pattern)[0]
        before = file.read_bytes()
        file.write_bytes(before[:-30])
        done = capfilt(command, run.folder)
        again = command in {"export", "retry"} and pattern.startswith("exports")
        assert done.code == (0 if again else 3)  # these write the records of exports again
        told = [line for line in done.err.splitlines() if str(file) in line]
        assert len(told) == 1
        assert told[0].startswith("warning: " if again else "capfilt: ")
        file.write_bytes(before)


# --- values of records


def leaves(plain: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    if isinstance(plain, dict | list):
        items = plain.items() if isinstance(plain, dict) else enumerate(plain)
        for key, value in items:
            yield from leaves(value, *path, key)
    else:
        yield path


def with_other(plain: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy of a JSON tree with one value changed to another of its type."""
    changed = json.loads(json.dumps(plain))
    place = changed
    for key in path[:-1]:
        place = place[key]
    value = place[path[-1]]
    if isinstance(value, bool) or value is None:
        place[path[-1]] = not value
    else:
        place[path[-1]] = value + (1 if isinstance(value, int | float) else "x")
    return changed


@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        ("rounds/*.json", load_record),
        ("inputs/*.json", read_manifest),
        ("exports/*.json", read_record),
    ],
)
def test_any_other_value_in_a_record_is_noticed(
    run: Run, pattern: str, read: Callable[[Path], object]
) -> None:
    file = run.files(pattern)[0]
    plain = json.loads(file.read_text())
    read(file)
    paths = list(leaves(plain))
    assert len(paths) > 5
    for path in paths:
        file.write_text(json.dumps(with_other(plain, path)))
        with pytest.raises(DamageError):
            read(file)


# --- what was computed from what


def test_a_shard_that_came_out_differently_takes_what_was_computed_from_it_along(
    base: tuple[Run, str], run: Run
) -> None:
    """A page may answer otherwise when it is fetched again: no text may stay with its old image."""
    ledger = Ledger(run.folder)
    download, hidden = run.stage("download"), run.stage("unjudged")
    shard = sorted(ledger.shards(download))[1]
    receipt, table = ledger.receipt(download, shard), ledger.read(download, shard)
    ledger.path(download, shard).unlink()
    ledger.commit(receipt, table.take([1, 0, *range(2, table.num_rows)]))
    found = json.loads(run.verify("--json").out)["problems"]
    named = {Path(problem["path"]).parent.name for problem in found}
    assert {hidden, run.stage("dedup"), run.stage("select_raw")} <= named
    assert all(problem["kind"] == "damaged" for problem in found)
    for folder in run.folder.glob("export-*"):
        shutil.rmtree(folder)
    done = run.again()
    assert done.code == 3
    assert "was computed from another file of download-" in done.err
    assert run.verify("--repair").code == 3
    done = run.again()
    assert done.code == 0
    assert digest_of(done) != base[1]
    assert run.verify().code == 0


# --- exports outside, copies


def test_a_copied_export_is_verified_by_itself(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.folder / "latest", copy)
    assert capfilt("verify", copy, "--quiet").code == 0
    (data,) = (copy / "data").iterdir()
    flipped(0.5, 1)(data, run)
    told = capfilt("verify", copy, "--repair", "--quiet")
    assert told.code == 3
    assert told.out.startswith(f"damaged: {data}: ")
    assert [p.name for p in (copy / "damaged" / "data").iterdir()] == [f"{data.name}.1"]
    (copy / "manifest.json").unlink()
    assert capfilt("verify", copy, "--quiet").code in {2, 3}
    done = capfilt("verify", tmp_path / "nothing", "--quiet")
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_an_export_elsewhere_is_healed_by_the_command_that_made_it(
    run: Run, tmp_path: Path
) -> None:
    to = tmp_path / "e"
    command = ("export", run.folder, "--to", to, "--file-mb", "1", "--json", "--quiet")
    digest = digest_of(capfilt(*command))
    for file in sorted(path for path in to.rglob("*") if path.is_file()):
        for way in list(WAYS.values())[2::2]:
            way(file, run)
            for _ in range(3):
                done = capfilt(*command)
                if done.code == 0:
                    break
                assert done.code == 3, done.err
                (repair,) = re.findall(r"`capfilt (verify [^`]* --repair)`", done.err)
                assert capfilt(*shlex.split(repair), "--quiet").code == 3
            assert digest_of(done) == digest
            assert capfilt("verify", to, "--quiet").code == 0


def test_the_ledger_notices_every_byte_that_changes_what_is_read(run: Run) -> None:
    ledger = Ledger(run.folder)
    for stage in ledger.stages():
        shard = sorted(ledger.shards(stage))[1]
        path = local(ledger.path(stage, shard))
        expected = ledger.read(stage, shard).to_pylist()
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 + len(whole) // 600):
            changed = bytearray(whole)
            changed[place] ^= 1 << int(hashlib.sha256(b"%d" % place).hexdigest()[0], 16) % 8
            path.write_bytes(changed)
            try:  # a word that no row has may get lost from a column's dictionary
                assert ledger.read(stage, shard).to_pylist() == expected
            except DamageError:
                continue
        path.write_bytes(whole)
