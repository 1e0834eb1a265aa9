import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from capfilt.errors import DamageError, StorageError
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.publish import Publisher
from tests.places import local


def table(tag: str, rows: int = 5) -> pa.Table:
    return pa.table(
        {"key": [f"{tag}{i}" for i in range(rows)], "image": [b"\xff" * i for i in range(rows)]}
    )


def commit(ledger: Ledger, tag: str = "a", rows: int = 5) -> bool:
    return ledger.commit(Receipt("caption-1", "s1", rows), table(tag, rows))


def test_commit_read_and_receipt(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert not ledger.has("caption-1", "s1")
    assert commit(ledger)
    assert ledger.has("caption-1", "s1")
    assert ledger.shards("caption-1") == {"s1"}
    assert ledger.read("caption-1", "s1", ["key"]) == table("a").select(["key"])
    receipt = ledger.check("caption-1", "s1", table("a").schema)
    assert receipt.rows == 5
    assert receipt.data_bytes > 0


def test_first_writer_wins_and_a_published_file_never_changes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert commit(ledger, "a")
    before = ledger.path("caption-1", "s1").read_bytes()
    assert not commit(ledger, "b")
    assert ledger.path("caption-1", "s1").read_bytes() == before


def test_bytes_are_on_the_disk_before_a_name_leads_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    synced, linked = os.fsync, os.link

    def fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        synced(descriptor)

    def link(source: Path, target: Path) -> None:
        steps.append("name")
        linked(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    assert commit(Ledger(tmp_path))
    assert steps == ["file", "name", "folder"]


def _race(root: Path, tag: str, gate: "multiprocessing.synchronize.Event") -> None:
    gate.wait()
    for shard in range(20):
        Ledger(root).commit(Receipt("caption-1", f"s{shard}", 5), table(tag))


def test_racing_processes_leave_one_whole_file_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    racers = [context.Process(target=_race, args=(tmp_path, tag, gate)) for tag in "abc"]
    for racer in racers:
        racer.start()
    gate.set()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    ledger = Ledger(tmp_path)
    assert len(ledger.shards("caption-1")) == 20
    for shard in ledger.shards("caption-1"):
        ledger.check("caption-1", shard)
        tags = {key[0] for key in ledger.read("caption-1", shard)["key"].to_pylist()}
        assert len(tags) == 1
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_every_kind_of_damage_is_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    commit(ledger)
    path = local(ledger.path("caption-1", "s1"))
    whole = path.read_bytes()

    path.write_bytes(whole[:-20])
    with pytest.raises(DamageError, match="torn"):
        ledger.check("caption-1", "s1")

    flipped = bytearray(whole)
    flipped[10] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(DamageError, match="altered"):
        ledger.check("caption-1", "s1")

    path.write_bytes(whole)
    with pytest.raises(DamageError, match="other columns"):
        ledger.check("caption-1", "s1", pa.schema([("text", pa.string())]))

    path.rename(local(ledger.path("caption-1", "s2")))
    with pytest.raises(DamageError, match="foreign"):
        ledger.check("caption-1", "s2")
    with pytest.raises(DamageError, match="missing"):
        ledger.check("caption-1", "s1")

    import pyarrow.parquet as pq

    pq.write_table(table("a"), path)
    with pytest.raises(DamageError, match="no capfilt receipt"):
        ledger.check("caption-1", "s1")


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64])
def test_texts_that_look_like_a_receipt_disturb_none(tmp_path: Path, digest: str) -> None:
    """A column's statistics stand in the footer too, and hold texts of strangers."""
    hostile = f'capfilt.receipt {{"footer_sha256": "{digest}"}}'
    ledger = Ledger(tmp_path)
    texts = pa.table({"caption": [hostile] * 3})
    ledger.commit(Receipt("caption-1", "s1", 3, counts={hostile: 3}), texts)
    assert ledger.read("caption-1", "s1") == texts
    path = local(ledger.path("caption-1", "s1"))
    whole = path.read_bytes()
    assert whole.count(f'"footer_sha256": "{digest}"'.encode()) > 1
    for place in range(len(whole) - 600, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamageError):
            ledger.read("caption-1", "s1")


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    commit(ledger)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pyarrow.OSFile", refuse)
    with pytest.raises(StorageError, match=r"cannot be read: .*Permission denied"):
        ledger.read("caption-1", "s1")


def test_a_failing_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="Free some space and run the same command again"):
        Publisher(tmp_path).publish("x/y.bin", fail)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lease"] == []
