"""The exports of a run: recorded, listed, told apart from the run itself, and never mixed."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.engine.plan import RunReader
from capfilt.engine.record import latest_round, plan_round, recorded_rounds
from capfilt.errors import DamageError
from capfilt.export import load_manifest
from capfilt.inputs import InputSpec, open_input
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.source import cut
from capfilt.recipe.options import RoundOptions, build_round
from tests.benchmarks import synthetic
from tests.e2e.killing import at_every_step
from tests.e2e.test_damage import Outcome, capfilt, digest_of
from tests.places import local

ROWS = 30
OPTIONS = ["--allow-private-hosts", "--shard-rows", "10"]


class Folder:
    """A finished run over made-up scores, and the commands on it."""

    def __init__(self, run: Path, urls: Path) -> None:
        self.run, self.urls, self.ledger = run, urls, Ledger(run)

    def again(self, *more: str) -> Outcome:
        fixed = ["--run", str(self.run), "--workers", "1", "--device", "cpu", "--json", "--quiet"]
        return capfilt("run", self.urls, *fixed, *OPTIONS, *more)

    def export(self, *more: str | Path) -> Outcome:
        return capfilt("export", self.run, "--json", "--quiet", *more)

    def exports(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(capfilt("status", self.run, "--json").out)[
            "exports"
        ]
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, str]:
    root = tmp_path_factory.mktemp("exports")
    synthetic.write_urls(root / "urls.parquet", ROWS)
    folder = Folder(root / "run", root / "urls.parquet")
    recipe = build_round(RoundOptions(allow_private_hosts=True, shard_rows=10))
    manifest = cut(open_input(InputSpec((str(folder.urls),))), folder.ledger, 10)
    plan = plan_round(recipe, manifest, folder.ledger)
    reader = RunReader(folder.ledger, plan)
    synthetic.publish(folder.ledger, plan, lambda s: reader.read(s, ["key"])["key"].to_pylist())
    done = folder.again()
    assert done.code == 0, done.err
    return folder, digest_of(done)


@pytest.fixture
def folder(finished: tuple[Folder, str], tmp_path: Path) -> Folder:
    shutil.copytree(finished[0].run, tmp_path / "run", symlinks=True)
    return Folder(tmp_path / "run", finished[0].urls)


def on_disk(export: Path) -> tuple[int, float]:
    """Return the rows of an export and their lowest score."""
    tables = [pq.read_table(file) for file in sorted((export / "data").glob("*.parquet"))]
    scores = [score for table in tables for score in table["itm_score"].to_pylist()]
    return len(scores), min(scores)


def test_what_is_printed_is_what_lies_there(folder: Folder, tmp_path: Path) -> None:
    to = tmp_path / "e"
    low = json.loads(folder.export("--to", to, "--threshold", "0.3").out)["result"]
    assert low["rows"] == on_disk(to)[0] == load_manifest(to)["rows"]
    refused = folder.export("--to", to, "--threshold", "0.6")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "holds another export" in refused.err
    assert on_disk(to)[0] == low["rows"]
    stages = folder.ledger.stages()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for more in ((), ("--replace",)):
        assert folder.export("--to", tmp_path / "mine", "--threshold", "0.77", *more).code == 2
    assert folder.ledger.stages() == stages  # it is refused before anything is decided anew
    high = json.loads(folder.export("--to", to, "--threshold", "0.6", "--replace").out)["result"]
    rows, lowest = on_disk(to)
    assert (high["rows"], high["digest"]) == (rows, load_manifest(to)["digest"])
    assert lowest >= 0.6
    assert high["rows"] < low["rows"]


def link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("../.git/annex/objects/gone")


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [link_to_nothing, folder_in_its_place])
@pytest.mark.parametrize("name", ["data/*.parquet", "README.md", "manifest.json", "reports"])
def test_a_link_to_nothing_or_a_folder_for_a_file_heals(
    finished: tuple[Folder, str], folder: Folder, spoil: Callable[[Path], None], name: str
) -> None:
    """What DVC or git-annex leave of files that are not at hand."""
    (export,) = folder.run.glob("export-*")
    (file,) = (folder.run / name).glob("*") if name == "reports" else export.glob(name)
    spoil(file)
    told = capfilt("verify", folder.run, "--quiet")
    assert told.code == 3
    assert str(file) in told.out
    capfilt("verify", folder.run, "--quiet", "--repair")
    assert not file.is_symlink()
    healed = folder.again()
    assert digest_of(healed) == finished[1]
    assert file.is_file()
    assert capfilt("verify", folder.run, "--quiet").code == 0


@pytest.mark.parametrize("spoil", [link_to_nothing, folder_in_its_place])
def test_without_repair_a_link_or_a_folder_for_a_file_is_one_line(
    folder: Folder, spoil: Callable[[Path], None]
) -> None:
    (export,) = folder.run.glob("export-*")
    for name in ("data/*.parquet", "README.md"):
        (file,) = export.glob(name)
        spoil(file)
        told = folder.again()
        assert told.code == 3
        assert "Traceback" not in told.err
        assert "--repair" in told.err.splitlines()[-1]
        capfilt("verify", folder.run, "--quiet", "--repair")


def test_an_export_is_no_round_of_the_run(
    finished: tuple[Folder, str], folder: Folder, tmp_path: Path
) -> None:
    before, _ = latest_round(folder.ledger)
    status = json.loads(capfilt("status", folder.run, "--json").out)
    for number, figures in enumerate((["--threshold", "0.9"], ["--origins", "web"])):
        assert folder.export(*figures).code == 0
        assert folder.export(*figures, "--to", tmp_path / str(number)).code == 0
    assert latest_round(folder.ledger)[0] == before
    assert len(recorded_rounds(folder.ledger)) == 1
    after = json.loads(capfilt("status", folder.run, "--json").out)
    assert after["stages"] == status["stages"]
    assert after["funnel"] == status["funnel"]
    assert digest_of(folder.again()) == finished[1]
    retried = capfilt("retry", folder.run, "--workers", "1", "--device", "cpu", "--json")
    assert digest_of(retried) == finished[1]
    assert digest_of(folder.export()) == finished[1]  # of the run itself, at its own figures
    assert capfilt("verify", folder.run, "--quiet").code == 0


def test_status_lists_every_export_with_its_figures_and_place(
    folder: Folder, tmp_path: Path
) -> None:
    e, d = tmp_path / "e", tmp_path / "d"
    folder.export("--to", e, "--threshold", "0.25")
    folder.export("--to", d, "--origins", "synthetic")
    folder.export("--to", e, "--threshold", "0.75", "--replace")
    folder.export("--instructions", "instructblip")
    own, first, second, third, inside = folder.exports()
    assert (Path(own["path"]).parent, own["state"]) == (folder.run, "")
    assert "threshold 0.5" in own["figures"]
    assert first["state"] == "another export lies there now"
    assert (second["path"], second["state"]) == (str(d), "")
    assert "origins synthetic" in second["figures"]
    assert (third["path"], third["rows"], third["state"]) == (str(e), on_disk(e)[0], "")
    assert "threshold 0.75" in third["figures"]
    assert "instructions" in inside["figures"]
    shutil.rmtree(d)
    (e / "manifest.json").unlink()
    shown = capfilt("status", folder.run).out
    assert len(re.findall(r"^export .*\(no longer there\)$", shown, re.MULTILINE)) == 3
    assert re.search(r"^export \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \d+ pairs  digest ", shown, re.M)


def test_gc_knows_exports(folder: Folder, tmp_path: Path) -> None:
    folder.export("--threshold", "0.25")
    folder.export("--threshold", "0.75", "--to", tmp_path / "e")
    assert json.loads(capfilt("gc", folder.run, "--json").out)["garbage"] == []
    shutil.rmtree(tmp_path / "e")
    (select,) = json.loads(capfilt("gc", folder.run, "--json").out)["garbage"]
    assert Path(select["path"]).name.startswith("select-")
    assert folder.again("--threshold", "0.1").code == 0
    old = json.loads(capfilt("gc", folder.run, "--json").out)["garbage"]
    assert len([1 for item in old if Path(item["path"]).name.startswith("export-")]) == 2
    assert capfilt("gc", folder.run, "--yes").code == 0
    assert capfilt("verify", folder.run, "--quiet").code == 0
    states = [export["state"] for export in folder.exports()]
    assert states == ["no longer there"] * 3 + [""]


def test_verify_misses_a_shard_under_an_export(folder: Folder, tmp_path: Path) -> None:
    folder.export("--to", tmp_path / "e", "--threshold", "0.25")
    paths = [path for path in sorted(folder.run.glob("stages/select-*/*.parquet"))][::4]
    assert len({path.parent for path in paths}) == 2  # one of the run's, one of the export's
    for path in paths:
        path.unlink()
    told = capfilt("verify", folder.run, "--quiet")
    assert told.code == 3
    assert all(f"missing: {path}" in told.out for path in paths)
    assert folder.again().code == 0
    assert folder.export("--to", tmp_path / "e", "--threshold", "0.25").code == 0
    assert capfilt("verify", folder.run, "--quiet").code == 0


def test_latest_leads_to_the_export_of_the_latest_round(folder: Folder, tmp_path: Path) -> None:
    latest = folder.run / "latest"
    own = latest.resolve()
    assert own.parent == folder.run.resolve()
    folder.export("--threshold", "0.9")
    assert latest.resolve() == own
    other = json.loads(folder.again("--threshold", "0.9").out)["result"]["dataset"]
    assert latest.resolve() == Path(other).resolve()
    assert load_manifest(latest)["rows"] == on_disk(latest)[0]
    shutil.move(folder.run, tmp_path / "moved")  # the link is relative
    assert (tmp_path / "moved" / "latest" / "manifest.json").exists()
    moved = Folder(tmp_path / "moved", folder.urls)
    (moved.run / "latest").unlink()
    (moved.run / "latest").mkdir()
    done = moved.again()
    assert done.code == 0
    assert "is not the link" in done.err
    assert capfilt("verify", moved.run, "--quiet").code == 0


def test_the_names_of_a_runs_own_exports_are_not_to_be_taken(folder: Folder) -> None:
    (own,) = folder.run.glob("export-*")
    for to in (folder.run / "export-mine", own, folder.run / "latest"):
        refused = folder.export("--to", to, "--threshold", "0.9", "--replace")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert folder.export("--to", folder.run / "latest").code == 0  # it is just that
    assert folder.export("--to", folder.run, "--threshold", "0.9").code == 2


def test_a_kill_at_any_step_of_finishing_is_made_good(
    finished: tuple[Folder, str], folder: Folder
) -> None:
    (own,) = folder.run.glob("export-*")
    for path in (own, folder.run / "exports", folder.run / "reports"):
        shutil.rmtree(path)
    (folder.run / "latest").unlink()

    def look() -> None:
        if (folder.run / "latest").exists():
            assert (folder.run / "latest" / "manifest.json").exists()
        assert all(e["state"] == "" for e in folder.exports())

    assert at_every_step(folder.export, look) > 5
    assert capfilt("verify", folder.run, "--quiet").code == 0
    (export,) = folder.exports()
    assert export["digest"] == finished[1]
    assert (folder.run / "latest").resolve() == own.resolve()


def test_a_kill_at_any_step_of_repairing_loses_no_file(folder: Folder) -> None:
    paths = sorted(folder.run.glob("stages/*/*.parquet"))[1::5]
    for path in paths:
        path.write_bytes(b"damaged " + path.name.encode())

    def everywhere() -> list[bytes]:
        there = [*folder.run.glob("stages/*/*"), *folder.run.glob("damaged/stages/*/*")]
        return sorted(c for p in there if (c := p.read_bytes()).startswith(b"damaged "))

    before = everywhere()
    assert len(before) == len(paths)

    def look() -> None:
        assert everywhere() == before

    def repair() -> None:
        capfilt("verify", folder.run, "--repair", "--quiet")

    assert at_every_step(repair, look) >= len(paths)
    assert everywhere() == before
    assert not any(path.exists() for path in paths)


# --- folders of older versions


def rewritten(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    plain = json.loads(file.read_text())
    plain.pop("sha256", None)
    file.write_text(json.dumps(change(plain), indent=1))


def as_written_before(path: Path, ledger: Ledger) -> None:
    """Write a shard's file as capfilt did before pages and footers had checksums."""
    receipt = ledger.receipt(path.parent.name, path.stem)
    table = ledger.read(path.parent.name, path.stem)
    plain = {k: v for k, v in asdict(receipt).items() if k not in {"footer_sha256", "inputs"}}
    with path.open("wb") as out, pq.ParquetWriter(out, table.schema, version="2.6") as writer:
        writer.write_table(table)
        out.flush()
        data = path.read_bytes()
        plain |= {"data_bytes": len(data), "data_sha256": hashlib.sha256(data).hexdigest()}
        writer.add_key_value_metadata({"capfilt.receipt": json.dumps(plain)})


@pytest.fixture
def older(folder: Folder) -> Folder:
    """A run folder as versions before this one left it: an export was a round."""
    folder.export("--threshold", "0.25")
    records = sorted((folder.run / "exports").glob("*.json"))
    last = json.loads(records[-1].read_text())
    other = folder.run / "rounds" / "000002-0123456789abcdef.json"
    other.write_text(json.dumps({"round": last["recipe"], "input": last["input"]}))
    for file in (*folder.run.glob("rounds/*.json"), *folder.run.glob("inputs/*.json")):
        rewritten(file, lambda plain: plain)
    for file in folder.run.glob("export-*/manifest.json"):
        rewritten(file, old_manifest)
    shutil.rmtree(folder.run / "exports")
    (folder.run / "latest").unlink()
    for path in folder.run.glob("stages/*/*.parquet"):
        as_written_before(path, folder.ledger)
    return folder


def old_manifest(plain: dict[str, Any]) -> dict[str, Any]:
    plain.pop("export")
    recipe = json.dumps(plain["provenance"]["recipe"])
    return plain | {"provenance": plain["provenance"] | {"recipe": recipe}}


def test_an_older_run_folder_is_read(finished: tuple[Folder, str], older: Folder) -> None:
    assert capfilt("verify", older.run, "--quiet").code == 0
    assert [(e["rows"] > 0, e["state"]) for e in older.exports()] == [(True, "")] * 2
    assert capfilt("gc", older.run).code == 0
    assert older.export().code == 0  # of the latest round, as it was
    before = {path: path.stat().st_ino for path in older.run.glob("export-*/data/*")}
    assert digest_of(older.again()) == finished[1]
    assert {path: path.stat().st_ino for path in older.run.glob("export-*/data/*")} == before
    assert capfilt("verify", older.run, "--quiet").code == 0


def test_an_older_file_with_a_text_like_a_receipt_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    texts = pa.table({"caption": ['capfilt.receipt {"footer_sha256": "%s"}' % ("0" * 64)] * 3})
    ledger.commit(Receipt("caption-1", "s1", 3), texts)
    as_written_before(local(ledger.path("caption-1", "s1")), ledger)
    assert ledger.receipt("caption-1", "s1").footer_sha256 == ""
    assert ledger.read("caption-1", "s1") == texts


def test_damage_of_an_older_file_is_noticed_when_it_is_read(older: Folder) -> None:
    path = sorted(older.run.glob("stages/match_web-*/*.parquet"))[1]
    ledger = older.ledger
    receipt, whole = ledger.receipt(path.parent.name, path.stem), path.read_bytes()
    for place in range(5, receipt.data_bytes, receipt.data_bytes // 50):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DamageError, match="--repair"):
            ledger.read(path.parent.name, path.stem)
