"""Exit codes, messages and output of the command line, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from capfilt import __version__
from capfilt.commands import verbs
from capfilt.flags import flags_of
from capfilt.inputs import InputSpec
from capfilt.recipe.options import round_flags
from tests.inputs.tools import has_all

HEAVY = {"torch", "transformers", "img2dataset", "faiss", "pandas", "datasets", "numpy", "pyarrow"}
VERBS = ("run", "plan", "status", "retry", "export", "verify", "gc")


def capfilt(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "capfilt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(code: int, *arguments: str | Path) -> str:
    """Run a command that must end with `code` and one message, without a traceback."""
    done = capfilt(*arguments)
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def urls(tmp_path: Path) -> Path:
    file = tmp_path / "urls.csv"
    lines = [f"http://127.0.0.1:1/{n}.jpg,text {n}" for n in range(5)]
    file.write_text("\n".join(["url,caption", *lines]) + "\n")
    return file


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([v, "--help"] for v in VERBS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    # The options of a verb are declared on its stages, which know Arrow's types.
    heavy = HEAVY if arguments[0].startswith("-") else HEAVY - {"numpy", "pyarrow"}
    script = (
        "import sys\n"
        "from capfilt.cli.app import main\n"
        f"sys.argv = ['capfilt', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    code = end.code\n"
        f"found = sorted(set(sys.modules) & {heavy!r})\n"
        "sys.exit(f'imported {found}' if found else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == __version__ or "Usage" in done.stdout


def test_the_help_says_what_exit_codes_mean() -> None:
    shown = " ".join(capfilt("--help").stdout.split())
    assert has_all(shown, ["Exit codes: 0 done", "2 the input", "130 interrupted", *VERBS])


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.parquet"
    message = refused(2, "run", missing, "--run", tmp_path / "run")
    assert str(missing) in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    odd = tmp_path / "urls.docx"
    odd.write_bytes(b"PK")
    assert "urls.docx" in refused(2, "run", odd, "--run", tmp_path / "run")


def test_a_missing_column_is_named_with_those_that_are_there(urls: Path, tmp_path: Path) -> None:
    message = refused(2, "run", urls, "--url-col", "adress", "--run", tmp_path / "run")
    assert has_all(message, ["adress", "url", "caption", "urls.csv"])
    assert not (tmp_path / "run").exists()


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("url,caption\n")
    assert "empty.csv" in refused(2, "run", empty, "--run", tmp_path / "run")


def test_a_folder_that_is_no_model_is_named(urls: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for option in ("--captioner", "--matcher"):
        message = refused(2, "run", urls, option, tmp_path / "model", "--run", tmp_path / "run")
        assert str(tmp_path / "model") in message


def test_a_matcher_is_no_captioner(
    urls: Path, tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    message = refused(2, "run", urls, "--captioner", tiny_pair[1], "--run", tmp_path / "run")
    assert str(tiny_pair[1]) in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no pipeline file"),
        ("ROUND = 3\n", "no ROUND"),
        ("import nothing_of_that_name\n", "nothing_of_that_name"),
        ("ROUND = (\n", "SyntaxError"),
    ],
)
def test_a_wrong_pipeline_is_told(urls: Path, tmp_path: Path, text: str | None, said: str) -> None:
    pipeline = tmp_path / "pipeline.py"
    if text is not None:
        pipeline.write_text(text)
    message = refused(2, "plan", urls, "--pipeline", pipeline, "--run", tmp_path / "run")
    assert has_all(message, [said, str(pipeline)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard-rows", "0"], "at least 1"),
        (["--workers", "0"], "workers"),
        (["--rank", "2", "--world-size", "2"], "rank 2 of 2"),
        (["--beams", "3", "--top-p", "0.5"], "exclude each other"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--images-dir", "x"], "--image-col"),
    ],
)
def test_wrong_options_are_told_before_any_work(
    urls: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    message = refused(2, "run", urls, "--run", tmp_path / "run", *options)
    assert said in message
    assert not list(tmp_path.glob("run/stages/download-*"))


def test_a_run_folder_that_is_a_file_is_refused(urls: Path) -> None:
    assert "is a file" in refused(2, "run", urls, "--run", urls)


@pytest.mark.parametrize("verb", VERBS[2:])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, verb: str) -> None:
    assert "no run folder" in refused(2, verb, tmp_path / "missing")
    assert "no run folder" in refused(2, verb, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plan_writes_nothing_and_prints_json(urls: Path, tmp_path: Path) -> None:
    done = capfilt("plan", urls, "--run", tmp_path / "run", "--shard-rows", "2", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["rows"] == 5
    names = [entry["stage"].rpartition("-")[0] for entry in planned["stages"]]
    assert {"download", "caption", "match_web", "match_captions", "select"} <= set(names)
    assert {entry["shards_missing"] for entry in planned["stages"]} == {3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["urls.csv"]


def small_run(
    folder: Path, tiny_pair: tuple[Path, Path], *inputs: str | Path
) -> "subprocess.CompletedProcess[str]":
    models: list[str | Path] = ["--captioner", tiny_pair[0], "--matcher", tiny_pair[1]]
    options = ["--workers", "1", "--json", "--quiet", "--allow-private-hosts"]
    return capfilt("run", *inputs, "--run", folder / "run", *models, *options)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_pair: tuple[Path, Path]
) -> tuple[Path, str]:
    """A run folder of a few local pictures, and what `run --json` printed."""
    folder = tmp_path_factory.mktemp("cli")
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no picture")
    table = folder / "captions.csv"
    table.write_text("image,caption\n0.png,a red picture\n1.png,a dog\n2.png,b\n")
    done = small_run(folder, tiny_pair, table, "--images-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


@pytest.mark.slow
def test_every_verb_prints_json(finished: tuple[Path, str]) -> None:
    run, printed = finished
    result = json.loads(printed)
    assert result["complete"] is True
    reasons = result["result"]["funnel"]["reasons"]
    assert sum(reasons.values()) == 3
    assert reasons["failed_to_resize"] == 1
    status = json.loads(capfilt("status", run, "--json").stdout)
    assert status["funnel"] == result["result"]["funnel"]
    assert json.loads(capfilt("verify", run, "--json", "--quiet").stdout)["problems"] == []
    garbage = json.loads(capfilt("gc", run, "--json").stdout)
    assert garbage == {"removed": False, "garbage": []}
    again = json.loads(capfilt("export", run, "--json", "--quiet").stdout)
    assert again["result"]["digest"] == result["result"]["digest"]


@pytest.mark.slow
def test_an_input_whose_images_are_all_gone_makes_an_empty_dataset(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    urls = tmp_path / "urls.csv"
    urls.write_text("url,caption\nhttp://127.0.0.1:1/a.jpg,a\nftp://host/b.jpg,b\n,c\n")
    done = small_run(tmp_path, tiny_pair, urls)
    assert done.returncode == 0, done.stderr
    funnel = json.loads(done.stdout)["result"]["funnel"]
    assert funnel["reasons"] == {"failed_to_download": 1, "invalid_url": 2}


@pytest.mark.slow
def test_a_foreign_file_makes_verify_end_with_3(finished: tuple[Path, str]) -> None:
    run, _ = finished
    stray = next(iter((run / "stages").glob("select-*"))) / "notes.txt"
    stray.write_text("not ours")
    done = capfilt("verify", run, "--json", "--quiet")
    stray.unlink()
    assert done.returncode == 3
    assert [p["path"] for p in json.loads(done.stdout)["problems"]] == [str(stray)]


@pytest.mark.slow
def test_an_unfinished_run_is_not_exported(finished: tuple[Path, str], urls: Path) -> None:
    run, _ = finished
    first = capfilt("run", urls, "--run", run, "--rank", "1", "--world-size", "2", "--json")
    assert json.loads(first.stdout)["complete"] is False
    assert "is not finished" in refused(2, "export", run, "--quiet")


def test_every_command_of_the_list_says_the_same_in_its_own_help() -> None:
    from capfilt.cli.app import COMMANDS

    for name in COMMANDS:
        shown = capfilt(name, "--help")
        assert shown.returncode == 0, shown.stderr
        assert f"capfilt {name} " in shown.stdout


def test_help_shows_the_default_of_every_option_that_has_one() -> None:
    shown = " ".join(capfilt("run", "--help").stdout.split())
    for flag in (*round_flags().values(), *flags_of(InputSpec, verbs.Hardware).values()):
        assert f"--{flag.name.replace('_', '-')} " in shown
        assert " ".join(flag.help.split()) in shown
    assert has_all(shown, ["[default: 384]", "[default: nucleus 1.1, beams 1]", "Decoding:"])
