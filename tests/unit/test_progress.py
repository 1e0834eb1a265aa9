import io
import re

import pytest

from capfilt import progress as module
from capfilt.progress import hear_metrics, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    return io.StringIO()


def test_a_log_has_lines_with_what_is_left_and_one_at_the_end(log: io.StringIO) -> None:
    with show_progress("download", 4_000, stream=log) as told:
        told(1_000)
        told(3_000)
    first, second, last = log.getvalue().splitlines()
    assert re.fullmatch(r"download: 1,000 of 4,000 rows, [\d,.]+ rows/s, [\d,]+ s left", first)
    assert second.startswith("download: 4,000 of 4,000 rows, ")
    assert re.fullmatch(r"download: 4,000 of 4,000 rows in [\d.]+ s, [\d,.]+ rows/s", last)


def test_an_unknown_total_and_little_time_are_one_line() -> None:
    log = io.StringIO()
    with show_progress("input", None, stream=log) as told:
        told(5)
    (line,) = log.getvalue().splitlines()
    assert line.startswith("input: 5 rows in ")


def test_a_training_tells_of_its_loss_and_not_of_steps_that_others_did(log: io.StringIO) -> None:
    with show_progress("train", 1_000_000, unit="step", stream=log) as told:
        heard = hear_metrics(told)
        heard({"step": 900_001, "loss": 2.5})
        heard({"step": 900_002, "loss": 2.25})
    first, _, last = log.getvalue().splitlines()
    assert first.startswith("train: 900,001 of 1,000,000 steps, loss 2.500, ")
    assert last.startswith("train: 900,002 of 1,000,000 steps in ")
    rate = float(re.findall(r"([\d,.]+) steps/s", last)[0].replace(",", ""))
    seconds = float(re.findall(r"in ([\d.]+) s", last)[0])
    assert rate * max(seconds, 0.05) < 100_000  # two steps, not nine hundred thousand


def test_a_terminal_has_a_bar() -> None:
    terminal = Terminal()
    with show_progress("train", 10, unit="step", stream=terminal) as told:
        heard = hear_metrics(told)
        for step in range(6, 11):
            heard({"step": step, "loss": 1.0 / step})
    shown = terminal.getvalue().split("\r")[-1]
    assert "10/10" in shown
    assert "loss 0.100" in shown
    assert "step/s" in shown or "s/step" in shown


def test_quiet_and_nothing_to_do_say_nothing() -> None:
    log = io.StringIO()
    for total, quiet in ((5, True), (0, False)):
        with show_progress("export", total, quiet=quiet, stream=log) as told:
            told(5, "a word")
    assert log.getvalue() == ""
