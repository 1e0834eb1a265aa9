"""Code of a user's own: run by workers, killed, resumed, shown and exported."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.train.data.index import open_stream
from capfilt.train.data.mixture import Stream

EXAMPLES = Path(__file__).parents[2] / "examples"
CAPTIONER, POLICY = EXAMPLES / "own_captioner.py", EXAMPLES / "own_policy.py"
FORMAT = EXAMPLES / "own_export.py"
ROWS = 24
RAW = ("--policy", "raw", "--workers", "1", "--quiet")  # a run without models


class Run:
    """A run folder over local pictures, with its code in files beside it."""

    def __init__(self, folder: Path) -> None:
        (folder / "images").mkdir(parents=True)
        lines = []
        for number in range(ROWS):
            noise = np.random.default_rng(number).integers(0, 9 * number + 9, (8, 8, 3), np.uint8)
            image = Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC)
            image.save(folder / "images" / f"{number}.png")
            lines.append({"image": f"{number}.png", "caption": f"a web text of number {number}"})
        self.table = folder / "captions.jsonl"
        self.table.write_text("\n".join(map(json.dumps, lines)))
        self.images, self.out = folder / "images", folder / "run"
        self.captioner = shutil.copy(CAPTIONER, folder / "own_captioner.py")
        self.policy = shutil.copy(POLICY, folder / "own_policy.py")
        self.format = shutil.copy(FORMAT, folder / "own_export.py")

    def command(self, verb: str, *options: object) -> list[str]:
        words: list[object] = [sys.executable, "-m", "capfilt", verb]
        if verb in {"run", "plan"}:
            words += [self.table, "--images-dir", self.images, "--run", self.out]
            words += ["--shard-rows", "4", "--dedup", "none"]
        else:
            words += [self.out]
        return [str(word) for word in (*words, "--json", *options)]

    def do(self, verb: str, *options: object, code: int = 0) -> Any:
        done = subprocess.run(
            self.command(verb, *options), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    @property
    def own(self) -> tuple[object, ...]:
        return *self.code, "--workers", "1", "--quiet"

    @property
    def shared(self) -> tuple[object, ...]:
        return *self.code, "--workers", "2", "--quiet"

    @property
    def code(self) -> tuple[object, ...]:
        policy = f"{self.policy}:LongTexts"
        return "--captioner", f"{self.captioner}:Brightness", "--policy", policy

    @property
    def as_lines(self) -> tuple[object, ...]:
        return "--format", f"{self.format}:JsonLines", "--quiet"

    @property
    def named(self) -> tuple[object, ...]:
        return "--pipeline", self.captioner, "--pipeline", self.policy

    def captions(self) -> set[str]:
        import pyarrow.parquet as pq

        files = (self.out / "stages").glob("caption-*/*.parquet")
        return {
            text for f in files for own in pq.read_table(f)["captions"].to_pylist() for text in own
        }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_it_runs_is_shown_and_exported(run: Run) -> None:
    result = run.do("run", *run.shared)["result"]
    assert result["funnel"]["rows"] == ROWS
    assert {text.rsplit(" ", 1)[0] for text in run.captions()} == {"a picture of brightness"}
    missing = {entry["shards_missing"] for entry in run.do("plan", *run.code)["stages"]}
    assert missing == {0}
    assert run.do("run", *run.own)["result"]["digest"] == result["digest"]
    assert run.do("status", *run.named)["funnel"]["rows"] == ROWS
    elsewhere = run.do("export", "--to", run.out.parent / "copy", "--quiet", *run.named)["result"]
    assert elsewhere["digest"] == result["digest"]
    assert run.do("verify", "--quiet", *run.named)["problems"] == []
    assert run.do("gc", *run.named)["garbage"] == []
    card = (Path(result["dataset"]) / "README.md").read_text()
    assert "Brightness of own" in card


def test_a_folder_runs_no_code_that_is_not_named(run: Run) -> None:
    run.do("run", *run.own)
    for verb in ("status", "export", "verify", "gc", "retry"):
        told = run.do(verb, code=2)
        assert "Brightness of own_captioner.py" in told
        assert "--pipeline …/own_captioner.py" in told
    records = [path.name for path in (run.out / "rounds").iterdir()]
    assert len(records) == 1  # none was taken for a damaged one
    run.do("run", "--captioner", "embedded", "--workers", "1", "--quiet")  # another round of it
    assert len(list((run.out / "rounds").iterdir())) == 2


def test_changed_code_is_done_again_and_nothing_else(run: Run) -> None:
    run.do("run", *run.own)
    file = Path(run.captioner)
    file.write_text(file.read_text().replace("of brightness", "of shade"))
    again = {
        e["stage"].rpartition("-")[0]: e["shards_missing"]
        for e in run.do("plan", *run.code)["stages"]
    }
    assert again["caption"] == again["match_captions"] == again["select_own"] == 6
    assert again["download"] == again["match_web"] == 0
    run.do("run", *run.own)
    assert any("of shade" in text for text in run.captions())


def test_a_class_without_fields_of_its_own_never_gets_the_captions_of_its_base(run: Run) -> None:
    run.do("run", "--captioner", "embedded", "--workers", "1", "--quiet")
    file = Path(run.captioner)
    text = file.read_text().replace(
        "    model: ModelRef = NO_CHECKPOINT\n",
        '    model: ModelRef = resolve_model("embedded", "captioner")\n',
    )
    file.write_text(text.replace("import NO_CHECKPOINT,", "import resolve_model,"))
    run.do("run", *run.own)
    assert any(caption.startswith("a picture of brightness") for caption in run.captions())


def lines_of(dataset: str) -> list[Any]:
    files = sorted((Path(dataset) / "data").iterdir())
    assert [file.suffix for file in files] == [".jsonl"] * len(files)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_an_export_format_of_ones_own(run: Run) -> None:
    usual = run.do("run", *RAW)["result"]
    own = run.do("export", *run.as_lines)["result"]
    assert own["dataset"] != usual["dataset"]
    assert own["rows"] == usual["rows"] == len(lines_of(own["dataset"])) == ROWS
    line = lines_of(own["dataset"])[0]
    assert Image.open(io.BytesIO(base64.b64decode(line["image"]))).size == (90, 70)
    card = (Path(own["dataset"]) / "README.md").read_text()
    assert "`data/` has a format of its maker's own." in card
    assert "load_dataset" not in card
    figures = [export["figures"] for export in run.do("status")["exports"]]
    assert ["JsonLines" in line for line in figures] == [False, True]
    garbage = {Path(item["path"]).name for item in run.do("gc")["garbage"]}
    assert garbage == set()  # though the format's code is not named
    assert run.do("verify", "--quiet")["problems"] == []
    with pytest.raises(InputError, match="training reads no others"):
        open_stream(Stream(Path(own["dataset"])))


def test_a_damaged_export_of_ones_own_format_is_noticed_and_made_again(run: Run) -> None:
    run.do("run", *RAW)
    to = run.out.parent / "lines"
    again = ("--to", to, *run.as_lines)
    first = run.do("export", *again)["result"]
    (file,) = (to / "data").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"a web text", b"a wet text", 1))
    assert "its SHA-256" in subprocess.run(
        [sys.executable, "-m", "capfilt", "verify", to, "--repair"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert run.do("export", *again)["result"]["digest"] == first["digest"]
    assert file.read_bytes() == whole
    code = Path(run.format)
    code.write_text(code.read_text().replace("scores: bool = True", "scores: bool = False"))
    assert "another export" in run.do("export", *again, code=2)
    changed = run.do("export", *again, "--replace")["result"]
    assert changed["digest"] != first["digest"]
    assert "itm_score" not in lines_of(changed["dataset"])[0]


@pytest.mark.slow
def test_a_format_of_ones_own_is_killed_and_resumed(run: Run) -> None:
    whole = run.do("run", *RAW, *run.as_lines)["result"]
    assert run.do("run", *RAW, *run.as_lines)["result"] == whole
    named = ("--pipeline", run.format)
    assert run.do("status", *named)["funnel"]["rows"] == ROWS
    assert "JsonLines of own_export.py" in run.do("status", code=2)
    shutil.rmtree(whole["dataset"])
    code = Path(run.format)
    code.write_text(code.read_text().replace("for table in", "for table in input() or "))
    place = run.out.parent / "killed"
    words = run.command("export", *run.as_lines, "--to", place)
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as killed:
        while killed.poll() is None and not (place / ".unfinished-plan.json").exists():
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)  # it waits for a line
    assert not (place / "manifest.json").exists()
    done = subprocess.run(words, input="\n", capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["result"]["digest"] == whole["digest"], done.stderr


@pytest.mark.slow
def test_it_is_killed_and_resumed(run: Run) -> None:
    whole = Run(run.out.parent / "whole")
    expected = whole.do("run", *whole.own)["result"]["digest"]
    killed = subprocess.Popen(
        run.command("run", *run.shared), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while killed.poll() is None and not list(run.out.glob("stages/caption-*/*.parquet")):
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert run.do("run", *run.own)["result"]["digest"] == expected


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own_policy.py:Nothing", "defines no Nothing that is a TextPolicy"),
        ("own_captioner.py:Brightness", "defines no Brightness that is a TextPolicy"),
        ("missing.py:LongTexts", "no such Python file"),
        ("broken.py:LongTexts", "fails: ZeroDivisionError"),
        ("no.such.module:LongTexts", "cannot be imported"),
    ],
)
def test_code_that_cannot_be_used_is_refused(run: Run, name: str, told: str) -> None:
    folder = run.table.parent
    (folder / "broken.py").write_text("1 / 0\n")
    place = name if name.startswith("no.such") else str(folder / name)
    message = run.do("plan", "--policy", place, code=2)
    assert told in message
    assert message.count("\n") == 1


def test_an_input_of_ones_own_is_run_and_resumed(run: Run) -> None:
    """Rows that a reader names by picture: cut, run, and not done again."""
    reader = run.table.parent / "own_input.py"
    text = (EXAMPLES / "own_input.py").read_text().replace('("url",', '("image",')
    reader.write_text(text.replace('"url":', '"image":'))
    names = "".join(
        f"<i:image><i:loc>{n}.png</i:loc><i:title>a text of {n}</i:title></i:image>"
        for n in range(ROWS)
    )
    space = "http://www.google.com/schemas/sitemap-image/1.1"
    run.table = run.table.parent / "map.xml"
    run.table.write_text(f"<urlset xmlns:i='{space}'>{names}</urlset>")
    own = ("--input-format", f"{reader}:Sitemap", *RAW)
    first = run.do("run", *own)["result"]
    assert first["rows"] == ROWS
    assert {e["shards_missing"] for e in run.do("plan", *own[:4])["stages"]} == {0}
    assert run.do("run", *own)["result"] == first
    assert run.do("status")["funnel"]["rows"] == ROWS  # a folder needs no reader
