import os
import sys
import time
from pathlib import Path

import pytest

from capfilt.engine import busy
from capfilt.engine.busy import DeviceUse, told, watched

LINES = """\
GPU-aaa, 0, 100
GPU-aaa, 80, 5000
GPU-bbb, 100, 9000
GPU-aaa, 100, 7000
GPU-aaa, [N/A], [N/A]
nonsense
GPU-aaa, 0, 7000
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a driver's tool into the path that tells `LINES` and goes on until it is ended."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!{sys.executable}\nimport time\nprint({LINES!r}, end='', flush=True)\ntime.sleep(60)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(busy, "_uuid", lambda device: {"cuda:0": "aaa", "cuda:1": "ccc"}[device])
    return tool


def test_own_devices_are_watched_from_their_first_work_to_their_last(driver: Path) -> None:
    with watched(("cuda:0", "cuda:1")) as seen:
        while "cuda:0" not in seen or len(seen["cuda:0"].busy) < 4:
            time.sleep(0.01)
    assert list(seen) == ["cuda:0"]  # not others' devices, nor one of which nothing is told
    assert seen["cuda:0"].share == pytest.approx(0.9)
    assert seen["cuda:0"].peak_bytes == 7000 * 2**20
    assert told("caption", seen) == [
        "caption: cuda:0 was busy 90 % of the time, 7.3 GB of its memory in use at most"
    ]


def test_nothing_is_told_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(busy, "_uuid", lambda _: "aaa")
    monkeypatch.setenv("PATH", str(tmp_path))
    with watched(("cuda:0",)) as seen:
        pass
    assert told("caption", seen) == []
    with watched(("cpu",)) as seen:
        pass
    assert seen == {}


def test_a_device_without_work_was_not_busy() -> None:
    assert DeviceUse([0, 0]).share == 0.0
