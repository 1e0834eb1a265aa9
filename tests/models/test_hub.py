"""The real hub client against a hub on loopback: what is fetched, recorded and said."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capfilt.errors import ModelError
from capfilt.models.checkpoints import resolve_model
from pipelines.experiments.quality import MODELS
from tests.models.hub import Hub, Repository, serving
from tests.models.pickles import pickled, pickled_shards
from tests.models.tiny import save_pair
from tests.models.tiny2 import OPT, save_instructblip

# Fetches in a process of its own, whose client retries without waiting.
ASK = """
import json, sys, time
time.sleep = lambda seconds: None
from capfilt.models.checkpoints import resolve_model
from capfilt.errors import ModelError
try:
    ref = resolve_model(*sys.argv[1:])
except ModelError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
else:
    print(json.dumps({"digest": ref.digest, "commit": ref.commit, "shown": ref.described}))
"""
OFFLINE = {"HF_HUB_OFFLINE": "1"}
WEIGHTS = "model.safetensors"


@dataclass
class World:
    """A hub and a client with a cache of its own."""

    hub: Hub
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        own = {"HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "0"}
        unset = {"HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}
        return {**{k: v for k, v in os.environ.items() if k not in unset}, **own, **more}

    def ask(self, name: str, role: str = "captioner", **more: str) -> dict[str, Any]:
        """Resolve a model as capfilt does; returns what came out, and checks that it is alone."""
        self.hub.asked.clear()
        ran = subprocess.run(
            [sys.executable, "-c", ASK, name, role],
            capture_output=True,
            text=True,
            check=True,
            env=self.environment(**more),
        )
        assert not ran.stderr  # nothing of the client's own
        told: dict[str, Any] = json.loads(ran.stdout)
        assert "\n" not in told.get("error", "")
        return told


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serving() as hub:
        yield World(hub, tmp_path / "home")


@pytest.fixture
def shipped(world: World) -> Repository:
    """A captioner among what else lies in repositories."""
    repository = world.hub.repository("org/captioner")
    more = {
        **{"README.md": b"about", ".gitattributes": b"", "tf_model.h5": b"x", "model.onnx": b"x"},
        **{"pytorch_model.bin": b"x", "training_args.bin": b"x", "flax_model.msgpack": b"x"},
        **{
            "onnx/config.json": b"{}",
            "checkpoint-500/model.safetensors": b"x",
            "nested/a.txt": b"",
        },
    }
    repository.commit_folder(MODELS / "captioner", more)
    return repository


def test_only_what_is_needed_is_fetched_and_only_once(world: World, shipped: Repository) -> None:
    found = world.ask("org/captioner")
    assert found["digest"] == resolve_model("embedded", "captioner").digest
    assert found["commit"] == shipped.refs["main"]
    assert found["shown"] == f"org/captioner@{shipped.refs['main'][:7]}"
    files = {file.name for file in (MODELS / "captioner").iterdir()}
    assert world.hub.fetched() | {WEIGHTS} == files
    assert sum("/lfs/" in path for method, path in world.hub.asked if method == "GET") == 1
    assert world.ask("org/captioner") == found
    assert not world.hub.fetched()
    assert not any("/lfs/" in path for _, path in world.hub.asked)


def test_a_wrong_kind_costs_no_weights(world: World, shipped: Repository) -> None:
    told = world.ask("org/captioner", "matcher")
    assert "'org/captioner' cannot be used" in told["error"]
    assert "is a BlipForConditionalGeneration; as matcher one of" in told["error"]
    assert world.hub.fetched() == {"config.json"}
    config = json.loads((MODELS / "captioner" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    files = {**shipped.commits[shipped.refs["main"]], "config.json": json.dumps(config).encode()}
    world.hub.repository("org/quantised").commit(files)
    assert "is quantised (awq)" in world.ask("org/quantised")["error"]
    assert world.hub.fetched() == {"config.json"}


@pytest.mark.parametrize("form", [pickled, pickled_shards])
def test_pickles_are_fetched_where_there_are_no_safetensors(
    world: World, form: Callable[[Path], object], tmp_path: Path
) -> None:
    folder, _ = save_pair(tmp_path / "tiny")
    form(folder)
    more = {"optimizer.bin": b"x", "training_args.bin": b"x", "rust_model.ot": b"x"}
    world.hub.repository("org/old").commit_folder(folder, more)
    found = world.ask("org/old")
    assert found["digest"] == resolve_model(str(folder), "captioner").digest
    sent = {path.rpartition("/")[2] for method, path in world.hub.asked if method == "GET"}
    assert {file.name for file in folder.glob("*.bin")} <= sent
    assert not sent & set(more)


def test_a_folder_inside_that_is_a_part_is_fetched(world: World, tmp_path: Path) -> None:
    folder = save_instructblip(tmp_path / "instructblip", OPT)
    world.hub.repository("org/instruct").commit_folder(folder, {"other/tokenizer.json": b"{}"})
    found = world.ask("org/instruct")
    assert found["digest"] == resolve_model(str(folder), "captioner").digest
    assert "qformer_tokenizer/tokenizer.json" in world.hub.fetched()
    assert "other/tokenizer.json" not in world.hub.fetched()


def test_revisions_are_branches_tags_and_commits(world: World, shipped: Repository) -> None:
    first = shipped.refs["main"]
    files = shipped.commits[first]
    shipped.refs["v1"] = first
    second = shipped.commit({**files, "notes.txt": b"new"})
    for revision, commit in (("v1", first), ("main", second), (first, first)):
        found = world.ask(f"org/captioner@{revision}")
        assert found["commit"] == commit
        assert found["shown"] == f"org/captioner@{commit[:7]}"
    shipped.refs["refs/pr/3"] = first  # a pull request's branch
    assert world.ask("org/captioner@refs/pr/3")["commit"] == first
    assert world.ask("org/captioner")["commit"] == second
    assert "has no such revision" in world.ask("org/captioner@v9")["error"]


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    folder, _ = save_pair(tmp_path / "org" / "name@v1")
    found = resolve_model(str(folder), "captioner")
    assert (found.path, found.commit, found.described) == (str(folder), None, str(folder))


def test_offline_the_cache_is_used(world: World, shipped: Repository) -> None:
    told = world.ask("org/captioner", **OFFLINE)
    assert "HF_HUB_OFFLINE is set" in told["error"]
    assert not world.hub.asked
    found = world.ask("org/captioner")
    assert world.ask("org/captioner", **OFFLINE) == found
    assert world.ask(f"org/captioner@{shipped.refs['main']}", **OFFLINE) == found
    assert not world.hub.asked
    assert world.ask("org/captioner", HF_ENDPOINT="http://127.0.0.1:9") == found  # it is gone
    shipped.refusal = (503, "")
    assert world.ask("org/captioner") == found


def test_offline_a_part_of_a_model_is_not_taken_for_all_of_it(
    world: World, shipped: Repository
) -> None:
    assert world.ask("org/captioner", "matcher")["error"]  # leaves config.json in the cache
    told = world.ask("org/captioner", **OFFLINE)
    assert "has no weights" in told["error"]
    world.ask("org/captioner")
    [snapshot] = world.home.glob("hub/models--org--captioner/snapshots/*")
    (snapshot / "generation_config.json").unlink()
    told = world.ask("org/captioner", **OFFLINE)
    assert "not whole in the hub's cache, generation_config.json is missing" in told["error"]
    assert "commit" in world.ask("org/captioner")  # online it is fetched again


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, "RepoNotFound"), "there is no such model there, or it is private"),
        ((404, "RepoNotFound"), "there is no such model there, or it is private"),
        ((401, ""), "there is no such model there, or it is private"),
        ((403, "GatedRepo"), "it is gated; ask for access"),
        ((403, ""), "the hub answers with status 403"),
        ((500, ""), "the hub answers with status 500"),
        ((503, ""), "the hub answers with status 503"),
        ((429, ""), "the hub answers with status 429"),
    ],
)
def test_refusals_are_one_line(world: World, refusal: tuple[int, str], message: str) -> None:
    world.hub.repository("org/captioner", refusal).commit_folder(MODELS / "captioner")
    told = world.ask("org/captioner")
    assert told["error"].startswith("cannot get 'org/captioner' from the hub: ")
    assert message in told["error"]


def test_no_such_model_and_no_such_file_are_one_line(world: World) -> None:
    assert "there is no such model there" in world.ask("org/nothing")["error"]
    world.hub.repository("org/data").commit({"train.csv": b"a,b"})
    assert "has no config.json" in world.ask("org/data")["error"]
    told = world.ask("org/nothing", HF_ENDPOINT="http://127.0.0.1:9")
    assert "ConnectError" in told["error"]


@pytest.mark.parametrize("name", ["nofolder/", "org/", "org/na--me", "org/name.git", "org/na me"])
def test_a_name_that_no_hub_can_have_is_one_line(name: str) -> None:
    for revision in ("", "@main"):
        with pytest.raises(ModelError, match="neither a folder nor a name") as told:
            resolve_model(f"{name}{revision}", "captioner")
        assert "\n" not in str(told.value)


def test_a_broken_download_goes_on_where_it_broke(world: World, shipped: Repository) -> None:
    files = shipped.commits[shipped.refs["main"]]
    shipped.commit({**files, "zeros.safetensors": bytes(24_000_000)})
    world.hub.tear = "zeros.safetensors"
    found = world.ask("org/captioner")
    assert found["commit"] == shipped.refs["main"]
    [resumed] = world.hub.ranges
    assert int(resumed.removeprefix("bytes=").partition("-")[0]) > 1_000_000
    sizes = {len(data) for data in files.values()} | {24_000_000}
    [snapshot] = world.home.glob("hub/models--org--captioner/snapshots/*")
    assert {file.stat().st_size for file in snapshot.iterdir()} <= sizes


def test_an_adapter_and_its_base_come_from_the_hub(
    world: World, shipped: Repository, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/captioner"}
    name = "base_model.model.text_decoder.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    import numpy as np
    from safetensors.numpy import save

    weights = save({name: np.zeros((4, 8), np.float32)})
    files = {"adapter_config.json": json.dumps(config).encode(), "README.md": b""}
    adapter = world.hub.repository("org/lora")
    adapter.commit({**files, "adapter_model.safetensors": weights, "other.safetensors": b"x"})
    found = world.ask("org/lora")
    base = shipped.refs["main"]
    assert found["shown"] == f"org/lora@{adapter.refs['main'][:7]} on org/captioner@{base[:7]}"
    assert not world.hub.fetched() & {"README.md", "other.safetensors"}
    assert world.ask("org/lora", **OFFLINE) == found
    assert "as matcher one of" in world.ask("org/lora", "matcher")["error"]


def run(world: World, table: Path, *more: str, **env: str) -> "subprocess.CompletedProcess[str]":
    images = ["--input-format", "images", "--dedup", "none", "--workers", "1", "--quiet"]
    command = ["run", str(table), "--run", str(table.parent / "run"), *images, *more]
    return subprocess.run(
        [sys.executable, "-m", "capfilt", *command],
        capture_output=True,
        text=True,
        check=False,
        env=world.environment(**env),
    )


def captions_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "stages").glob("caption-*"))


@pytest.mark.slow
def test_a_run_records_its_commit_and_says_when_the_hub_has_moved(
    world: World, shipped: Repository, tmp_path: Path
) -> None:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
    table = tmp_path / "table.csv"
    table.write_text("image,caption\n0.png,a red square\n1.png,a blue square\n")
    first, files = shipped.refs["main"], shipped.commits[shipped.refs["main"]]
    given = ("--captioner", "org/captioner")
    ran = run(world, table, *given)
    assert ran.returncode == 0, ran.stderr
    assert f"model: captioner org/captioner@{first[:7]}" in ran.stderr
    [record] = (tmp_path / "run" / "rounds").glob("*.json")
    assert json.loads(record.read_text())["round"]["caption"]["model"]["commit"] == first
    stages = captions_of(tmp_path)

    second = shipped.commit({**files, "README.md": b"other words"})
    ran = run(world, table, *given)
    moved = f"org/captioner has moved on its hub, org/captioner@{first[:7]} to"
    assert f"{moved} org/captioner@{second[:7]}: its files are the same" in ran.stderr
    assert captions_of(tmp_path) == stages
    assert "has moved" not in run(world, table, *given, **OFFLINE).stderr  # said once

    told = subprocess.run(
        [sys.executable, "-m", "capfilt", "status", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
        env=world.environment(**OFFLINE),
    )
    assert f"captioner org/captioner@{second[:7]}" in told.stdout


def test_plan_ends_with_one_line_and_exit_2(world: World, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("url,caption\nhttp://127.0.0.1:9/a.png,a dog\n")
    command = ["plan", str(table), "--run", str(tmp_path / "run"), "--captioner", "org/none"]
    ran = subprocess.run(
        [sys.executable, "-m", "capfilt", *command],
        capture_output=True,
        text=True,
        check=False,
        env=world.environment(),
    )
    assert ran.returncode == 2
    [line] = ran.stderr.strip().splitlines()
    assert line.startswith("capfilt: cannot get 'org/none' from the hub: there is no such model")
