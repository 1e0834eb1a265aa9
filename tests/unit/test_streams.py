"""Consoles as batch systems have them: encodings, closed pipes, full disks, no home."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from capfilt.cli import console
from capfilt.progress import show_progress
from capfilt.wording import counted, inert, one_line

# A command line of one command: it shows a result, under progress, and writes that it came through.
_COMMAND = """
import sys
from pathlib import Path
from capfilt.cli import console

class Result:
    def text(self):
        return "caf\\u00e9 \\u2026 \\U0001f600 \\u202eevil\\x1b[2J " + "x" * 100_000
    def plain(self):
        return {"text": self.text()}

def app():
    console.say("input: caf\\u00e9 \\u2026 \\U0001f600 \\u202eevil\\x1b[2J")
    with console.progress_bar(False)("caf\\u00e9 \\u2713", 2) as told:
        told(2)
    console.show(Result(), as_json="--json" in sys.argv)
    Path(sys.argv[1]).touch()

console.main(app)
"""


def shell(tmp_path: Path, how: str, **env: str) -> tuple[int, str]:
    """Run the command as `how` says; returns its exit code and standard error. It came through."""
    program, through = tmp_path / "program.py", tmp_path / "through"
    program.write_text(_COMMAND)
    through.unlink(missing_ok=True)
    command = f"{sys.executable} {program} {through}"
    script = f"{how.format(command)}; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=False, env={**os.environ, **env}
    )
    assert through.exists(), ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    return ran.returncode, ran.stderr.decode(errors="replace")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "ascii:strict"])
def test_no_character_fails_a_command(tmp_path: Path, encoding: str) -> None:
    code, said = shell(tmp_path, "{}", PYTHONIOENCODING=encoding)
    assert code == 0
    assert "input: caf" in said
    plain = shell(tmp_path, "{}", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert plain[0] == 0


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("{} | true", 141),
        ("{} --json | head -c 1 > /dev/null", 141),
        ("{} > /dev/full", 4),
        ("{} --json > /dev/full", 4),
        ("{} 2> /dev/full", 0),
        ("{} >&-", 0),
        ("{} 2>&-", 0),
        ("{} <&- >&- 2>&-", 0),
        ("{} 2> >(true)", 0),  # the reader of its progress has gone
    ],
)
def test_an_output_that_fails_is_told_by_the_exit_code_when_the_work_is_done(
    tmp_path: Path, how: str, code: int
) -> None:
    found, said = shell(tmp_path, how)
    assert found == code
    if code == 4:
        assert said.endswith("capfilt: cannot write to standard output: No space left on device\n")


def test_a_strangers_text_does_nothing_to_the_terminal(tmp_path: Path) -> None:
    _, said = shell(tmp_path, "{} >&2", PYTHONIOENCODING="utf-8")
    assert "evil" in said
    assert inert(said) == said
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in said
    assert "\x1b" not in said


def test_the_message_of_a_bug_does_nothing_to_the_terminal() -> None:
    program = (
        "from capfilt.cli import console\n"
        "def app(): raise ValueError('\\x1b[2J\\u202egnirts')\n"
        "console.main(app)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert ran.stderr.endswith("ValueError: [2Jgnirts\n")


def test_texts_lose_what_acts_and_nothing_else() -> None:
    kept = "café … 👩‍🚀 עברית العربية\ttab\nline ‐ ­"
    assert inert(kept) == kept
    acting = [*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F]
    acting += [*range(0x2028, 0x202F), *range(0x2066, 0x206A)]
    for number in acting:
        assert inert(f"a{chr(number)}b") == "ab", hex(number)
    assert one_line("  a\n\u2028\u202e b\x1b[m ") == "a b[m"


def test_a_single_thing_is_singular(capsys: pytest.CaptureFixture[str]) -> None:
    assert [counted(n, "row") for n in (0, 1, 2_000)] == ["0 rows", "1 row", "2,000 rows"]
    assert counted(2, "process", "processes") == "2 processes"
    with show_progress("export", 1) as told:
        told(1)
    assert "export: 1 of 1 row in " in capsys.readouterr().err


def test_a_program_without_standard_streams_has_no_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with show_progress("export", 1) as told:
        told(1)
    console.say("to nobody")


def test_img2dataset_is_imported_without_wandb_and_wandb_when_it_is_wanted(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from capfilt.stages.download.stage import quiet_dependencies\n"
        "quiet_dependencies()\n"
        "import img2dataset.logger\n"
        "before = 'wandb' in sys.modules\n"
        "late = img2dataset.logger.wandb.__version__ if len(sys.argv) > 1 else None\n"
        "print(json.dumps([before, hasattr(img2dataset.logger.wandb, 'Table')]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "WANDB_MODE": "disabled"},
    )
    assert json.loads(ran.stdout) == [False, True]


def test_a_module_that_wandb_was_imported_by_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from capfilt.stages.download.stage import import_without_wandb

    wandb = ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    import_without_wandb()
    assert sys.modules["wandb"] is wandb
