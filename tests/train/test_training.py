"""Trainings of a few steps on a small export: killed, chained, and on two processes."""

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.errors import DamageError, InputError
from capfilt.models.checkpoints import EMBEDDED
from capfilt.simweb.falsehoods import rng_of
from capfilt.simweb.grammar import describe
from capfilt.train.data.mixture import Mixture, Stream, weighted
from capfilt.train.loop import LoopOptions
from capfilt.train.options import TrainOptions, mixture_of, recipe_of
from capfilt.train.plot import loss_plot
from capfilt.train.process import alone
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Itc, Optim, Pretrain
from capfilt.train.start import lacking, start_of
from capfilt.train.training import Trained, Training, train
from tests.stages.pictures import make_pictures

OPTIM = Optim(peak_lr=5e-4, steps=6, batch_size=8, warmup_steps=2)
ITC = Itc(queue_size=24, alpha_ramp_steps=3)
RECIPE = Pretrain(OPTIM, ITC, side=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures with a caption each, as the Hugging Face layout has them."""
    pictures = make_pictures(21, 60, 1)
    rows = []
    for number, scene in enumerate(pictures.scenes):
        out = io.BytesIO()
        Image.fromarray(pictures.pixels[number]).save(out, "PNG")
        image = {"bytes": out.getvalue(), "path": f"{number}.png"}
        rows.append({"key": f"{number}", "image": image, "text": describe(scene, rng_of(number))})
    folder = tmp_path_factory.mktemp("data") / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder.parent


def training(data: Path, out: Path, **changed: object) -> Training:
    given = Training(
        RECIPE,
        start_of(EMBEDDED, fresh=True),
        Mixture((Stream(data),)),
        looping=LoopOptions(out, every=2),
    )
    return replace(given, **changed)  # type: ignore[arg-type]  # each caller gives fields


def run(given: Training) -> Trained:
    return train(given, lambda _: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model" / "med" / "med.safetensors")
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    found = run(training(data, out))
    assert found.steps == 6
    assert {"itc", "itm", "lm", "loss"} <= found.last.keys()
    return out


def test_plain_transformers_loads_what_comes_out(pretrained: Path) -> None:
    for role, kind in (
        ("captioner", BlipForConditionalGeneration),
        ("matcher", BlipForImageTextRetrieval),
    ):
        _, info = kind.from_pretrained(pretrained / "model" / role, output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    lines = (pretrained / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "<svg" in (pretrained / "model" / "loss.svg").read_text()
    assert len(list((pretrained / "checkpoints").iterdir())) == 2


def test_a_second_run_finds_it_done_and_another_is_refused(data: Path, pretrained: Path) -> None:
    before = weights(pretrained)
    told: list[object] = []
    assert train(training(data, pretrained), told.append).steps == 6
    assert not told
    assert equal(weights(pretrained), before)
    other = replace(RECIPE, seed=1)
    with pytest.raises(InputError, match="another training"):
        run(training(data, pretrained, recipe=other))


def test_data_of_the_same_shape_are_other_data(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    recipe = FineTuneCaptioner(replace(OPTIM, steps=1, warmup_steps=0), side=64)
    first = run(training(own, tmp_path / "out", recipe=recipe))
    assert run(training(data, tmp_path / "out", recipe=recipe)) == first  # wherever they lie
    file = own / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    texts = pa.array([f"{text} again" for text in table["text"].to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", texts), file)
    with pytest.raises(InputError, match="another training"):
        run(training(own, tmp_path / "out", recipe=recipe))


def test_killed_at_any_moment_it_comes_to_the_same_weights(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.train.train_once", str(data), str(tmp_path / "out")]
    kills = 0
    for checkpoint in (1, 2):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None:
            if len(list((tmp_path / "out" / "checkpoints").glob("*.pt"))) >= checkpoint:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert kills == 2
    subprocess.run(command, check=True)
    assert equal(weights(tmp_path / "out"), weights(pretrained))


def test_threads_and_parts_of_reading_change_nothing(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    run(training(data, tmp_path / "threads", workers=2))
    assert equal(weights(tmp_path / "threads"), weights(pretrained))


def test_fine_tuning_goes_on_from_a_pre_training(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    start = start_of(str(pretrained / "model"), fresh=False)
    captioner = FineTuneCaptioner(replace(OPTIM, peak_lr=1e-5), side=64)
    found = run(training(data, tmp_path / "captioner", recipe=captioner, start=start))
    assert set(found.last) == {"step", "lr", "norm", "loss", "lm"}
    assert [p.name for p in (tmp_path / "captioner" / "model").iterdir() if p.is_dir()] == [
        "captioner"
    ]
    judge = FineTuneFilter(replace(OPTIM, peak_lr=1e-5), ITC, side=64)
    found = run(training(data, tmp_path / "filter", recipe=judge, start=start))
    assert set(found.last) == {"step", "lr", "norm", "loss", "itc", "itm"}
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path / "filter" / "model" / "matcher")
    assert torch.isfinite(model.itm_head.weight).all()


def test_accumulation_sees_the_same_samples(data: Path, tmp_path: Path) -> None:
    whole = FineTuneCaptioner(replace(OPTIM, steps=2), side=64)
    parts = replace(whole, optim=replace(whole.optim, accumulate=2))
    one = run(training(data, tmp_path / "one", recipe=whole))
    two = run(training(data, tmp_path / "two", recipe=parts))
    # Means over parts of unequal length weigh tokens a little otherwise.
    assert one.first["lm"] == pytest.approx(two.first["lm"], rel=0.02)


def test_a_loss_that_is_no_number_stops_the_training(data: Path, tmp_path: Path) -> None:
    wild = FineTuneCaptioner(Optim(peak_lr=1e30, steps=9, batch_size=8), side=64)
    with pytest.raises(DamageError, match=r"step \d: the loss is"):
        run(training(data, tmp_path, recipe=wild))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_bad_rows_alone_end_with_the_reason(tmp_path: Path, workers: int) -> None:
    bad = {"bytes": b"<html>", "path": "x"}
    rows = [{"image": bad, "text": "a" if number else None} for number in range(5)]
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    recipe = replace(RECIPE, optim=replace(OPTIM, batch_size=5))
    with pytest.raises(InputError, match=r"no row .*: 1 no text, 4 undecodable image"):
        run(training(tmp_path, tmp_path / "out", recipe=recipe, workers=workers))


def test_rows_that_were_left_out_are_told_of_after_a_resume_too(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data / "data").slice(0, 8)
    texts = pa.array([None, " ", *table["text"].to_pylist()[2:]], pa.string())
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", texts), file)
    found = run(training(tmp_path, tmp_path / "out"))
    assert found.skipped == {"no text": 12}  # two in each of six times through
    assert "12 × no text" in found.text()
    shutil.rmtree(tmp_path / "out" / "model")
    (tmp_path / "out" / "checkpoints" / "step-000000006.pt").unlink()
    assert run(training(tmp_path, tmp_path / "out")).skipped == found.skipped
    assert run(training(tmp_path, tmp_path / "out")).skipped == found.skipped  # finds it done


def test_a_checkpoint_that_is_none_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000002.pt").write_text("garbage")
    with pytest.raises(DamageError, match=r"step-000000002\.pt cannot be read .*; remove it"):
        run(training(data, tmp_path))


def test_more_tokens_than_the_model_has_places_for_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and the checkpoint has places for 48"):
        run(training(data, tmp_path, recipe=replace(RECIPE, max_tokens=4000)))


def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ours = ["-m", "tests.train.train_once", str(data), str(tmp_path / "out")]
    subprocess.run([*command, *ours], check=True, capture_output=True, timeout=300)
    alone = tmp_path / "alone"
    run(training(data, alone))
    together, single = (
        [json.loads(line)["lm"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "out", alone)
    )
    assert len(together) == len(single) == 6
    # Rank 0 writes down its own half of each batch; both halves drive the same weights.
    assert np.isfinite(together).all()
    assert together[-1] < together[0]
    shutil.rmtree(tmp_path / "out" / "model")
    with pytest.raises(InputError, match="begun by 2 processes, and now there are 1"):
        run(training(data, tmp_path / "out"))


def test_of_two_processes_one_tells_what_came_out(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ours = ["-m", "capfilt", "train", "captioner", str(data), "--like", EMBEDDED, "--json"]
    options = ["--steps", "1", "--batch-size", "4", "--device", "cpu", "--out", str(tmp_path)]
    ran = subprocess.run(
        [*command, *ours, *options], check=True, capture_output=True, text=True, timeout=300
    )
    assert json.loads(ran.stdout)["steps"] == 1
    assert ran.stderr.count("train captioner: 1 of 1") == 1


def test_two_commands_never_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "capfilt", "train", "captioner", str(data), "--quiet"]
    options = ["--like", EMBEDDED, "--steps", "1", "--batch-size", "4", "--out", str(tmp_path)]
    with alone(tmp_path, pytest.fail):
        waiting = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "being trained by another process; waiting" in waiting.stderr.readline()
        assert not (tmp_path / "checkpoints").exists()
    waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    assert (tmp_path / "model").is_dir()


def test_a_folder_without_locks_is_told_and_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with alone(tmp_path, said.append):
        (line,) = said
    assert "a file system without locks" in line


def test_a_folder_that_cannot_be_is_told_before_any_step(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    command = [sys.executable, "-m", "capfilt", "train", "captioner", str(data), "--steps", "1"]
    options = ["--like", EMBEDDED, "--batch-size", "4", "--out", str(tmp_path / "file")]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert ran.returncode > 0
    assert "1 of 1" not in ran.stderr
    assert f"{tmp_path / 'file'}" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_a_plot_has_a_curve_for_every_loss() -> None:
    picture = loss_plot([{"step": n, "loss": 2 / n, "<lm>": 1 / n} for n in range(1, 900)])
    assert picture.count("<path") == 3
    assert "&lt;lm&gt;" in picture
    assert "899 steps" in picture


def test_the_command_trains_and_finds_it_done(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "capfilt", "train", "pretrain", f"{data}=1.0", "--json"]
    options = ["--like", EMBEDDED, "--out", str(tmp_path / "out"), "--steps", "3", "--quiet"]
    sizes = ["--batch-size", "8", "--queue-size", "16", "--peak-lr", "1e-4", "--device", "cpu"]
    for _ in range(2):
        ran = subprocess.run(
            [*command, *options, *sizes], capture_output=True, text=True, check=True
        )
        told = json.loads(ran.stdout)
        assert told["steps"] == 3
    assert (Path(told["models"]) / "matcher" / "tokenizer.json").exists()
    both = subprocess.run(
        [*command[:6], "--out", str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert both.returncode == 2
    assert "give --like CHECKPOINT" in both.stderr


def test_options_change_blips_recipe(data: Path) -> None:
    folder = start_of(EMBEDDED, fresh=True).folder
    plain = TrainOptions("pretrain", (str(data),), Path("x"), like=EMBEDDED)
    recipe = recipe_of(plain, 57_600, folder)
    assert isinstance(recipe, Pretrain)
    assert (recipe.optim.batch_size, recipe.optim.steps, recipe.side) == (2880, 400, 64)
    half = recipe_of(replace(plain, batch_size=1440, queue_size=99), 57_600, folder)
    assert isinstance(half, Pretrain)
    assert (half.optim.steps, half.itc.queue_size) == (800, 99)
    assert (recipe.itc.alpha_ramp_steps, half.itc.alpha_ramp_steps) == (20, 40)  # an epoch
    several = recipe_of(replace(plain, captions_per_image=4, max_tokens=26), 57_600, folder)
    assert isinstance(several, Pretrain)
    assert (several.captions_per_image, several.max_tokens) == (4, 26)
    with pytest.raises(InputError, match="no LM"):
        recipe_of(replace(plain, kind="filter", captions_per_image=4), 57_600, folder)
    judge = recipe_of(replace(plain, kind="filter", epochs=2), 2560, folder)
    assert (judge.optim.steps, judge.optim.peak_lr) == (20, 1e-5)
    with pytest.raises(InputError, match="exclude each other"):
        recipe_of(replace(plain, epochs=1, steps=1), 10, folder)
    with pytest.raises(InputError, match="x=much is no folder, and 'much' no weight"):
        mixture_of(replace(plain, data=("x=much",)))


@pytest.mark.parametrize(
    "name", ["side", "max_tokens", "captions_per_image", "batch_size", "steps"]
)
def test_a_zero_is_no_default(data: Path, name: str) -> None:
    folder = start_of(EMBEDDED, fresh=True).folder
    zero: dict[str, Any] = {name: 0}
    with pytest.raises(InputError, match=rf"{name} is 0"):
        recipe_of(TrainOptions("captioner", (str(data),), Path("x"), **zero), 100, folder)


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.5"
    folder.mkdir()
    assert weighted(str(folder)) == (str(folder), None)
    assert weighted(f"{folder}=2") == (str(folder), 2.0)
    assert weighted("x=0.5") == ("x", 0.5)
    assert weighted("x") == ("x", None)


def test_a_start_without_the_kind_that_is_trained_is_told_of(pretrained: Path) -> None:
    assert lacking(start_of(EMBEDDED, fresh=True), "filter") == ()
    assert lacking(start_of(str(pretrained / "model"), fresh=False), "pretrain") == ()
    captioner = start_of(str(pretrained / "model" / "captioner"), fresh=False)
    assert lacking(captioner, "captioner") == ()
    assert lacking(captioner, "filter") == lacking(captioner, "pretrain") == ("filter",)
    judge = start_of(str(pretrained / "model" / "matcher"), fresh=False)
    assert (lacking(judge, "captioner"), lacking(judge, "filter")) == (("captioner",), ())


def test_a_filter_goes_on_from_a_matcher_alone(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    start = start_of(str(pretrained / "model" / "matcher"), fresh=False)
    recipe = FineTuneFilter(replace(OPTIM, steps=1, peak_lr=1e-9, warmup_steps=0), ITC, side=64)
    run(training(data, tmp_path, recipe=recipe, start=start))
    file = Path("model") / "matcher" / "model.safetensors"
    before, after = (load_file(folder / file) for folder in (pretrained, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_a_captioner_has_no_queue(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "capfilt", "train", "captioner", str(data), "--quiet"]
    options = ["--like", EMBEDDED, "--out", str(tmp_path / "out"), "--queue-size", "9"]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "--queue-size has no effect on a captioner" in ran.stderr
