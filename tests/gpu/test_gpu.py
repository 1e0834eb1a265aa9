"""The questions to a GPU, asked of this CPU with tiny models: that they can be asked at all."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.checkpoints import LARGE
from tests.gpu import __main__ as gpu
from tests.gpu.bench import Bench, Findings
from tests.gpu.speed import work_flops

SMALL = ["--device", "cpu", "--tiny", "--images", "4"]


def test_questions_are_answered_and_written(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main([*SMALL, "--json", str(out), "--only", "card", "equality", "memory"]) == 0
    told = json.loads(out.read_text())
    assert list(told) == ["card", "equality", "memory"]
    assert told["equality"]["figures"]["fp32"]["greedy_tokens"] == 1.0
    assert told["equality"]["figures"]["fp32"]["states"] < 1e-4
    assert all(not answer["faults"] for answer in told.values())


def test_a_question_that_fails_is_a_fault_and_the_next_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(bench: Bench, found: Findings) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Bench, "prepare", lambda _: None)
    monkeypatch.setitem(gpu.QUESTIONS, "card", breaks)
    monkeypatch.setitem(gpu.QUESTIONS, "equality", lambda _, found: found.expect(True, "well"))
    assert gpu.main([*SMALL, "--only", "card", "equality"]) == 1
    told = capsys.readouterr().out
    assert "FAIL card: RuntimeError: no such kernel" in told
    assert "ok   well" in told
    assert "1 things do not hold" in told


def test_work_is_counted_as_the_architecture_has_it(tmp_path: Path) -> None:
    bench = Bench("cpu", LARGE, tmp_path, 4, 4)
    assert work_flops(bench, 1) == pytest.approx(824e9, rel=0.01)
    assert work_flops(bench, 4) == pytest.approx(856e9, rel=0.02)
