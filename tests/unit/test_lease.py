import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from capfilt.ledger.publish import TMP_DIR, Publisher
from capfilt.process import lease

# Writes a file until a byte comes on its standard input.
_WRITER = """
import sys
from pathlib import Path
from capfilt.ledger.publish import Publisher

def slow(out):
    out.write(b"half")
    print("writing", flush=True)
    sys.stdin.read(1)
    out.write(b" done")

print(Publisher(Path(sys.argv[1])).publish("x/y.bin", slow), flush=True)
"""
_NAMESPACES = ("unshare", "--pid", "--fork", "--mount-proc")


@contextmanager
def writer(folder: Path, *wrap: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that is writing into `folder`."""
    child = subprocess.Popen(
        [*wrap, sys.executable, "-c", _WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        yield child
        child.kill()


def told_to_finish(child: "subprocess.Popen[str]") -> str:
    """Let a writer finish; returns what it says of that."""
    return child.communicate("\n", timeout=60)[0].strip()


def unfinished(folder: Path) -> list[Path]:
    return [path for path in (folder / TMP_DIR).iterdir() if path.suffix != lease.SUFFIX]


def make_old(paths: list[Path]) -> None:
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in paths:
        os.utime(path, (two_days_ago, two_days_ago))


def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes_at_once(
    tmp_path: Path,
) -> None:
    publisher = Publisher(tmp_path)
    with writer(tmp_path) as living, writer(tmp_path) as killed:
        assert publisher.leftovers() == []
        killed.kill()
        killed.wait()
        (left,) = publisher.leftovers()
        assert f"~{killed.pid}~" in left.name
        publisher.sweep()
        assert len(unfinished(tmp_path)) == 1
        assert told_to_finish(living) == "True"
    assert (tmp_path / "x/y.bin").read_bytes() == b"half done"
    assert list((tmp_path / TMP_DIR).iterdir()) == []


def test_containers_of_one_host_name_and_one_process_id_do_not_take_each_other_for_dead(
    tmp_path: Path,
) -> None:
    if subprocess.run([*_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not permit process namespaces (unshare --pid)")
    sweep = (
        "import sys, pathlib; from capfilt.ledger.publish import Publisher;"
        "Publisher(pathlib.Path(sys.argv[1])).sweep()"
    )
    with writer(tmp_path, *_NAMESPACES) as first, writer(tmp_path, *_NAMESPACES) as second:
        pids = {path.name.split("~")[1] for path in unfinished(tmp_path)}
        assert pids == {"1"}  # the first process of its container, as in most containers
        second.kill()  # unshare alone: its child lives, and still holds its lock
        again = [*_NAMESPACES, sys.executable, "-c", sweep, str(tmp_path)]
        subprocess.run(again, check=True)
        assert len(unfinished(tmp_path)) == 2
        assert told_to_finish(first) == "True"
    assert (tmp_path / "x/y.bin").read_bytes() == b"half done"


def test_a_process_id_that_is_given_out_again_hides_nothing(tmp_path: Path) -> None:
    with writer(tmp_path) as killed:
        killed.kill()
        killed.wait()
    for path in (tmp_path / TMP_DIR).iterdir():  # as if it had had the id of this process
        path.rename(path.with_name(path.name.replace(f"~{killed.pid}~", f"~{os.getpid()}~")))
    assert len(Publisher(tmp_path).leftovers()) == 1


def test_another_machines_writer_is_gone_after_a_day_of_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(tmp_path)
    with writer(tmp_path) as killed:
        killed.kill()
        killed.wait()
    (left,) = unfinished(tmp_path)
    (held,) = (tmp_path / TMP_DIR).glob(f"*{lease.SUFFIX}")
    monkeypatch.setattr(lease, "_seen_from", lambda _: b"another kernel, another mount")
    assert publisher.leftovers() == []
    make_old([left])  # one long file: its lease is what tells
    assert publisher.leftovers() == []
    make_old([held])
    assert publisher.leftovers() == [left]
    publisher.sweep()
    assert list((tmp_path / TMP_DIR).iterdir()) == []


def test_a_lease_is_touched_while_its_writer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lease, "_held", lease._Held())
    with Publisher(tmp_path).scratch_dir():
        (held,) = (tmp_path / TMP_DIR).glob(f"*{lease.SUFFIX}")
        make_old([held])
        while held.stat().st_mtime < time.time() - 3600:
            time.sleep(0.01)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_day_of_silence_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    publisher = Publisher(tmp_path)
    with publisher.scratch_dir():
        assert publisher.leftovers() == []
        make_old(list((tmp_path / TMP_DIR).glob(f"*{lease.SUFFIX}")))
        assert len(publisher.leftovers()) == 1


def test_a_lock_that_fails_in_another_way_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        lease.private_path(tmp_path)


def test_a_file_that_no_lease_tells_of_goes_after_a_day(tmp_path: Path) -> None:
    old = tmp_path / TMP_DIR / "host~12~0123456789abcdef"  # as earlier versions named them
    old.parent.mkdir()
    old.write_bytes(b"half")
    assert Publisher(tmp_path).leftovers() == []
    make_old([old])
    assert Publisher(tmp_path).leftovers() == [old]


def _publish(root: str) -> None:
    def write(out: BinaryIO) -> None:
        out.write(root.encode())

    for number in range(20):
        Publisher(Path(root)).publish(f"x/{os.getpid()}-{number}", write)
    assert len(list((Path(root) / TMP_DIR).glob(f"*~{os.getpid()}~*{lease.SUFFIX}"))) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_has_one_lease_and_takes_it_with_it(tmp_path: Path, method: str) -> None:
    publisher = Publisher(tmp_path)
    context: Any = multiprocessing.get_context(method)  # the contexts share no typed base
    with publisher.scratch_dir() as mine:
        child = context.Process(target=_publish, args=(str(tmp_path),))
        child.start()
        child.join()
        assert child.exitcode == 0
        (own,) = (p for p in mine.parent.iterdir() if p != mine)
        assert f"~{os.getpid()}~" in own.name
    assert len(list((tmp_path / "x").iterdir())) == 20


def test_a_forked_childs_end_does_not_end_its_parents_lease(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    with publisher.scratch_dir():
        child = os.fork()
        if child == 0:
            held = publisher.scratch_dir()
            held.__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        look = (
            "import sys, pathlib, capfilt.ledger.publish as p\n"
            "print(*p.Publisher(pathlib.Path(sys.argv[1])).leftovers())"
        )
        found = subprocess.run(
            [sys.executable, "-c", look, str(tmp_path)], capture_output=True, text=True, check=True
        )
        (left,) = found.stdout.split()
        assert f"~{child}~" in left


def test_a_folder_that_was_removed_under_a_process_gets_a_new_lease(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "run")
    for _ in range(2):
        assert publisher.publish_bytes("x", b"x")
        shutil.rmtree(tmp_path / "run")
    with publisher.scratch_dir() as mine:
        assert len(list(mine.parent.iterdir())) == 2


def test_many_folders_do_not_keep_many_files_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        Publisher(tmp_path / str(number)).publish_bytes("x", b"x")
    assert len(os.listdir("/proc/self/fd")) < before + 30
