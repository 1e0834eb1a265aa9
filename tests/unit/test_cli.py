"""Exit codes, messages and output of the command line, in processes of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from capfilt import __version__
from capfilt.cli.app import app
from capfilt.commands import Hardware
from capfilt.engine.attempts import add_attempts
from capfilt.errors import EXIT_CODES, CapfiltError, exit_codes_told
from capfilt.flags import flags_of
from capfilt.inputs import InputSpec
from capfilt.ledger.ledger import Ledger
from capfilt.recipe.options import round_flags
from pipelines.experiments.quality import MODELS
from tests.inputs.tools import has_all

# The resizer, in this process.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
HEAVY = {"torch", "transformers", "img2dataset", "faiss", "pandas", "datasets", "numpy", "pyarrow"}
VERBS = ("run", "plan", "status", "retry", "export", "verify", "gc")


def capfilt(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "capfilt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments: object) -> Result:
    """Run a command in this process, which spares it the imports."""
    return CliRunner().invoke(app, list(map(str, arguments)))


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


def test_the_help_and_the_readme_say_what_exit_codes_mean() -> None:
    shown = " ".join(capfilt("--help").stdout.split())
    assert has_all(shown, [exit_codes_told(), *VERBS])
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert exit_codes_told() in " ".join(readme.split())


def test_every_error_has_an_exit_code_that_is_told() -> None:
    def below(kind: type[CapfiltError]) -> set[type[CapfiltError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert len(below(CapfiltError)) > 5
    assert {kind.exit_code for kind in below(CapfiltError)} <= set(EXIT_CODES)


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
        planned = here("plan", urls, option, tmp_path / "model", "--run", tmp_path / "run")
        assert (planned.exit_code, planned.stderr) == (2, message)


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
    planned = here("plan", urls, "--run", tmp_path / "plan", *options)
    assert (planned.exit_code, planned.stderr) == (2, message)
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_run_folder_that_is_a_file_is_refused(urls: Path, verb: str) -> None:
    below = here(verb, urls, "--run", urls / "run")
    assert (below.exit_code, below.stdout) == (4, "")
    assert "Not a directory" in below.stderr
    ended = here(verb, urls, "--run", urls)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "is a file" in ended.stderr


def test_a_refused_run_is_not_the_latest_round(urls: Path, tmp_path: Path) -> None:
    short = tmp_path / "captioner"
    shutil.copytree(MODELS / "captioner", short)
    (file,) = short.glob("*.safetensors")
    weights = load_file(file)
    del weights[sorted(weights)[0]]
    save_file(weights, file, {"format": "pt"})
    options = ["--captioner", short, "--run", tmp_path / "run"]
    ran = here("run", urls, *options)
    assert ran.exit_code == 2
    message = ran.stderr.splitlines()[-1]
    assert str(short) in message
    status = here("status", tmp_path / "run")
    assert (status.exit_code, status.stdout) == (2, "")
    assert "no run folder" in status.stderr
    assert here("plan", urls, *options).stderr.splitlines()[-1] == message


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
def test_a_run_in_which_every_row_failed_is_no_success(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    urls = tmp_path / "urls.csv"
    addresses = ["http://127.0.0.1:1/a.jpg", "ftp://host/b.jpg", "", "http://127.0.0.1:1/a.jpg"]
    urls.write_text("".join(["url,caption\n", *(f"{address},x\n" for address in addresses)]))
    done = small_run(tmp_path, tiny_pair, urls)
    assert done.returncode == 3
    told = done.stderr.splitlines()[-1]
    assert has_all(told, ["every row failed", "2 of 3 rows by invalid_url"])
    printed = json.loads(done.stdout)  # what came out is printed all the same
    assert printed["complete"] is True
    reasons = printed["result"]["funnel"]["reasons"]
    assert reasons == {"failed_to_download": 1, "invalid_url": 2, "duplicate_url": 1}
    (kind,) = printed["failures"]["kinds"]
    assert (kind["reason"], kind["kind"], kind["rows"]) == ("failed_to_download", "refused", 1)
    assert kind["remedy"] == "capfilt retry"
    assert printed["failures"]["hosts"] == [
        {"host": "127.0.0.1", "rows": 1, "kinds": {"refused": 1}}
    ]
    run = tmp_path / "run"
    status = here("status", run, "--json")
    assert status.exit_code == 0
    assert json.loads(status.stdout)["failures"] == printed["failures"]
    assert told.removeprefix("capfilt: ") in here("status", run).stdout
    exported = here("export", run, "--json", "--quiet")
    assert exported.exit_code == 3
    assert json.loads(exported.stdout)["failures"] == printed["failures"]
    # A retry that was killed before it fetched: the next one fetches what it had added.
    ledger = Ledger(run)
    (fetch_id,) = (stage for stage in ledger.stages() if stage.startswith("download-"))
    assert len(add_attempts(ledger, ledger.shards(fetch_id), fetch_id)) == 1
    again = here("retry", run, "--fetch-only", "--workers", "1", "--quiet")
    assert again.exit_code == 3
    assert has_all(again.stdout, ["1 row fetched again, 0 came", "refused"])


@pytest.mark.slow
def test_a_run_of_unreadable_local_files_is_no_success(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\na.png,a\n")
    models = ["--captioner", tiny_pair[0], "--matcher", tiny_pair[1], "--workers", "1"]
    done = here(
        "run", table, "--images-dir", tmp_path, "--run", tmp_path / "run", *models, "--json"
    )
    assert done.exit_code == 3
    assert has_all(done.stderr, ["every row failed", "1 of 1 row by", "not_an_image"])
    assert json.loads(done.stdout)["failures"]["hosts"] == []  # nobody's server is to blame


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
def test_an_unfinished_run_is_not_exported(finished: tuple[Path, str], tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run", symlinks=True))
    next((run / "stages").glob("caption-*/*.parquet")).unlink()
    assert "is not finished (caption)" in refused(2, "export", run, "--quiet")


def test_every_command_of_the_list_says_the_same_in_its_own_help() -> None:
    from capfilt.cli.app import COMMANDS

    for name in COMMANDS:
        shown = capfilt(name, "--help")
        assert shown.returncode == 0, shown.stderr
        assert f"capfilt {name} " in shown.stdout


def test_help_shows_the_default_of_every_option_that_has_one() -> None:
    def unbroken(text: str) -> str:
        return " ".join(text.split()).replace("- ", "-")  # lines end at hyphens too

    shown = unbroken(capfilt("run", "--help").stdout)
    for flag in (*round_flags().values(), *flags_of(InputSpec, Hardware).values()):
        assert f"--{flag.name.replace('_', '-')} " in shown
        assert unbroken(flag.help) in shown
    assert has_all(shown, ["[default: 384]", "[default: nucleus 1.1, beams 1]", "Decoding:"])
