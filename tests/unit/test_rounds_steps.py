"""The loop as a configuration: its steps, what they depend on, what is refused, what it costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from capfilt.errors import DamageError, InputError, ModelError
from capfilt.export import ExportConfig
from capfilt.export.formats import ExportFormat
from capfilt.inputs import InputSpec
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.options import RoundOptions, default_round
from capfilt.recipe.round import Round
from capfilt.rounds import PairFolder, Rounds, TrainPlan
from capfilt.rounds.checks import RoundsRequest, check
from capfilt.rounds.config import load_rounds
from capfilt.rounds.cost import cost_of_rounds
from capfilt.rounds.options import RoundsOptions, build_rounds
from capfilt.rounds.steps import Cleaned, Facts, RoundsFolder, Step, steps_of
from capfilt.simweb.human import HumanSet, write_human
from capfilt.stages.policies.raw import RawWeb
from capfilt.train.cost import seconds_a_step, step_flops
from capfilt.train.process import Fitted, TrainJob, run_job
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Optim, Pretrain

ROOT = Path(__file__).parents[2]
LOOP = Rounds(default_round(), (PairFolder("human"),), 2, like="embedded")
FACTS = Facts("input", "start", ("human",), "held-out")
PIPELINES = sorted(path.name for path in (ROOT / "pipelines").glob("blip_*_*m.py"))


def ids(rounds: Rounds, facts: Facts = FACTS) -> dict[str, str]:
    return {step.name: step.id for step in steps_of(rounds, facts)}


def changed(other: Rounds, facts: Facts = FACTS) -> set[str]:
    """Return the steps that are not those of LOOP."""
    mine = ids(LOOP)
    return {name for name, id_ in ids(other, facts).items() if mine.get(name) != id_}


def test_the_steps_stand_in_the_order_of_the_paper() -> None:
    models = ("pretrain", "captioner", "filter", "evaluate")
    both = [f"{n}-{kind}" for n in (1, 2) for kind in ("clean", *models)]
    assert list(ids(LOOP)) == ["raw", *(f"0-{kind}" for kind in models), *both]
    given = replace(LOOP, begin="models", count=1)
    assert list(ids(given)) == ["1-clean", *(f"1-{kind}" for kind in models)]
    reads = {step.name: step.reads for step in steps_of(LOOP, FACTS)}
    assert reads["0-pretrain"] == ("raw",)
    assert reads["1-clean"] == ("0-captioner", "0-filter")
    assert reads["1-filter"] == ("1-pretrain",)


def test_a_change_changes_what_depends_on_it() -> None:
    after_round_0 = {name for name in ids(LOOP) if name[0] in "12"}
    judge = replace(LOOP, filter=TrainPlan("filter", steps=7))
    assert changed(judge) == {"0-filter", "0-evaluate"} | after_round_0
    everything = set(ids(LOOP))
    assert changed(LOOP, replace(FACTS, input="other")) == everything
    assert changed(LOOP, replace(FACTS, human=("other",))) == everything - {"raw"}
    scored = {name for name in everything if name.endswith("evaluate")}
    assert changed(LOOP, replace(FACTS, held_out="other")) == scored
    sharper = replace(LOOP.first, caption=replace(LOOP.first.caption, num_captions=3))
    assert changed(replace(LOOP, first=sharper)) == after_round_0


def test_speed_and_more_rounds_change_nothing() -> None:
    faster = TrainPlan("pretrain", workers=9, every=3, recompute=True)
    assert changed(replace(LOOP, pretrain=faster)) == set()
    assert changed(replace(LOOP, first=replace(LOOP.first, shard_rows=3))) == set()
    more = changed(replace(LOOP, count=3))
    assert {name[0] for name in more} == {"3"}


def test_the_raw_round_compares_no_embeddings() -> None:
    raw = LOOP.raw()
    assert isinstance(raw.select, RawWeb)
    assert raw.models == ()
    assert raw.dedup is not None
    assert raw.dedup.method == "sha256"
    assert raw.fetch == LOOP.first.fetch  # or everything would be downloaded twice


def test_weights_are_for_all_or_for_none() -> None:
    assert [one.weight for one in LOOP.pretraining_data("export")] == [None, None]
    some = replace(LOOP, human=(PairFolder("human", 0.2),))
    assert [one.weight for one in some.pretraining_data("export")] == [1.0, 0.2]
    heavy = replace(some, web_weight=4.0)
    assert [one.weight for one in heavy.pretraining_data("export")] == [4.0, 0.2]


def test_a_job_travels_to_its_process_as_json() -> None:
    plan = TrainPlan("pretrain", Pretrain.blip(1000), peak_lr=1.0, seed=3)
    job = TrainJob(plan, (PairFolder("x", 0.5),), "out", "embedded", True, ("cuda:0", "cuda:1"))
    assert from_plain(TrainJob, json.loads(json.dumps(to_plain(job)))) == job
    recipe = plan.recipe_for(5, Path())
    assert isinstance(recipe, Pretrain)
    assert (recipe.optim.peak_lr, recipe.optim.steps, recipe.seed) == (1.0, 7, 3)


def test_what_is_written_down_is_read_back_or_refused(tmp_path: Path) -> None:
    place, steps = RoundsFolder(tmp_path), steps_of(LOOP, FACTS)
    place.check(steps)
    assert not list(tmp_path.iterdir())
    place.record(steps)
    place.check(steps)
    other = steps_of(LOOP, replace(FACTS, start="other"))
    with pytest.raises(InputError, match=r"step 0-pretrain, start \(--like, --init\) differs"):
        place.check(other)
    outcome = Cleaned("run/export-1", 3, "abc", 4, 2, 1, 1)
    assert place.outcome(steps[0], Cleaned) is None
    place.keep(steps[0], outcome)
    assert place.outcome(steps[0], Cleaned) == outcome
    with pytest.raises(DamageError, match="lacks the outcome of 0-pretrain"):
        place.done(steps[1], Fitted)
    (tmp_path / "steps" / "raw.json").write_text("{")
    with pytest.raises(DamageError, match=r"raw\.json cannot be read"):
        place.check(steps)


def test_options_override_the_configuration(tmp_path: Path) -> None:
    cleaning = RoundOptions(threshold=0.7)
    options = RoundsOptions(
        cleaning,
        count=3,
        human=("a=0.5", "b=2"),
        like="embedded",
        steps=9,
        batch_size=16,
        fine_tune_steps=4,
        fine_tune_lr=1e-4,
        augment="colour-safe",
        precision="bf16",
    )
    found = build_rounds(options)
    assert (found.count, found.begin) == (3, "raw")
    assert found.human == (PairFolder("a", 0.5), PairFolder("b", 2.0))
    assert (found.pretrain.steps, found.captioner.steps, found.filter.batch_size) == (9, 4, 16)
    assert found.filter.peak_lr == 1e-4
    assert found.pretrain.peak_lr is None
    assert {plan.precision for plan in found.trainings} == {"bf16"}
    assert found.first.caption.precision == "fp32"  # `cleaning` says that
    file = tmp_path / "loop.py"
    file.write_text(
        "from capfilt.recipe.options import default_round\n"
        "from capfilt.rounds import Rounds, TrainPlan\n"
        "ROUNDS = Rounds(default_round(), like='embedded', begin='models',\n"
        "    pretrain=TrainPlan('pretrain', epochs=2))\n"
    )
    found = build_rounds(RoundsOptions(RoundOptions(pipeline=str(file)), count=2, steps=5))
    assert (found.count, found.begin, found.like) == (2, "models", "embedded")
    assert (found.pretrain.epochs, found.pretrain.steps) == (None, 5)
    assert load_rounds(str(ROOT / "pipelines" / "demo.py")).first.shard_rows == 1000


def in_another_format() -> Round:
    return replace(LOOP.first, export=ExportConfig(format=ExportFormat()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(LOOP, count=0), "0 rounds; give at least 1"),
        (lambda: replace(LOOP, init="x"), "not both"),
        (lambda: replace(LOOP, first=in_another_format()), "training reads Parquet alone"),
        (lambda: replace(LOOP, like=None).start, "give --like CHECKPOINT"),
        (lambda: replace(LOOP, filter=TrainPlan("captioner")), "'filter' of the rounds is a plan"),
        (lambda: TrainPlan("filter", Pretrain.blip(9)), "is a Pretrain; give a FineTuneFilter"),
        (lambda: TrainPlan("pretrain", epochs=1, steps=1), "exclude each other"),
        (lambda: TrainPlan("pretrain", Pretrain.blip(9), epochs=1), "give steps instead"),
        (lambda: TrainPlan("pretrain", every=0), "every 0 steps"),
        (lambda: TrainPlan("pretrain", workers=-1), "-1 workers"),
        (lambda: build_rounds(RoundsOptions(RoundOptions(matcher="embedded"))), "give both"),
        (lambda: build_rounds(RoundsOptions(RoundOptions(), human=("a=b",))), "'b' no weight"),
        (lambda: load_rounds("/nowhere.py"), "is no pipeline file"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> RoundsRequest:
    folder = tmp_path_factory.mktemp("given")
    write_human(HumanSet(12, side=64), folder / "human")
    urls = folder / "urls.csv"
    rows = [f"http://localhost/{n}.jpg,a picture of thing {n}" for n in range(40)]
    urls.write_text("\n".join(["url,caption", *rows]) + "\n")
    return RoundsRequest(InputSpec((str(urls),)), folder / "out", device="cpu")


def loop(given: RoundsRequest, **changed: Any) -> Rounds:
    human = (PairFolder(str(given.out.parent / "human")),)
    sizes: dict[str, Any] = {"batch_size": 8, "steps": 2}
    return (
        Rounds(
            default_round(),
            human,
            like="embedded",
            pretrain=TrainPlan("pretrain", **sizes),
            captioner=TrainPlan("captioner", **sizes),
            filter=TrainPlan("filter", **sizes),
        )
        if not changed
        else replace(loop(given), **changed)
    )


def test_checks_find_what_is_wrong_before_anything_is_written(
    given: RoundsRequest, tmp_path: Path
) -> None:
    good = loop(given)

    def with_filter(**changed: Any) -> Rounds:
        return replace(good, filter=replace(good.filter, **changed))

    found = check(good, given)
    assert (found.human_samples, found.manifest.rows, found.processes) == (12, 40, 1)
    cases: list[tuple[Rounds, RoundsRequest, type[Exception], str]] = [
        (replace(good, human=()), given, InputError, "give --human DIR"),
        (replace(good, human=(PairFolder("/nowhere"),)), given, InputError, "is no folder"),
        (replace(good, like="/nowhere"), given, ModelError, "there is no folder"),
        (good, replace(given, processes=3), InputError, "shared equally by 3 processes"),
        (good, replace(given, processes=0), InputError, "give at least 1"),
        (good, replace(given, held_out="/nowhere"), InputError, "no Parquet file"),
        (good, replace(given, spec=InputSpec(("/nowhere.csv",))), InputError, "nowhere"),
        (good, replace(given, out=Path(__file__)), InputError, "is a file"),
        (replace(good, web_weight=2.0), given, InputError, "has no weight"),
        (with_filter(side=60), given, InputError, "60 pixels are no multiple"),
        (with_filter(max_tokens=4000), given, InputError, "has places for 48"),
    ]
    for rounds, what, kind, message in cases:
        with pytest.raises(kind, match=message):
            check(rounds, what)
    foreign = tmp_path / "clip"
    foreign.mkdir()
    config = {"model_type": "clip", "vision_config": {}, "text_config": {}}
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is a clip; new models are built like a BLIP"):
        check(replace(good, like=str(foreign)), given)
    assert not given.out.exists()


def test_human_pairs_of_the_same_length_are_told_apart(
    given: RoundsRequest, tmp_path: Path
) -> None:
    write_human(HumanSet(12, seed=1, side=64), tmp_path)
    other = replace(loop(given), human=(PairFolder(str(tmp_path)),))
    mine, theirs = check(loop(given), given), check(other, given)
    assert mine.steps[1].id != theirs.steps[1].id


def test_a_step_costs_what_it_computes() -> None:
    config: dict[str, Any] = {"vision_config": {}, "text_config": {}}
    optim = Optim(1e-4, 10, 32)
    captioner = step_flops(FineTuneCaptioner(optim), config)
    judge = step_flops(FineTuneFilter(optim), config)
    both = step_flops(Pretrain(optim, side=384), config)
    assert captioner < judge < both < captioner + judge
    twice = step_flops(FineTuneCaptioner(replace(optim, batch_size=64)), config)
    assert twice == 2 * captioner
    # A ViT-B/16 at 384 px is 55 billion multiply-adds, a step of training three times that.
    assert captioner / 32 == pytest.approx(3 * 2 * 55e9, rel=0.15)


def test_seconds_a_step_come_from_checkpoints(tmp_path: Path) -> None:
    import os

    assert seconds_a_step(tmp_path) == (0, None)
    (tmp_path / "checkpoints").mkdir()
    for steps, when in ((100, 1000.0), (300, 1050.0)):
        file = tmp_path / "checkpoints" / f"step-{steps:09d}.pt"
        file.touch()
        os.utime(file, (when, when))
    assert seconds_a_step(tmp_path) == (300, 0.25)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_real_size_load_and_say_what_they_cost(
    name: str, given: RoundsRequest, tmp_path: Path
) -> None:
    text = (ROOT / "pipelines" / name).read_text()
    large = "large" in name
    for role, kind in (("captioner", "ConditionalGeneration"), ("matcher", "ImageTextRetrieval")):
        folder = _shape(tmp_path / role, f"BlipFor{kind}", large)
        hub = [line.split('"')[1] for line in text.splitlines() if line.startswith(role.upper())]
        text = text.replace(f'"{hub[0]}"', repr(str(folder)))
    file = tmp_path / name
    file.write_text(text)
    human = str(given.out.parent / "human")
    options = RoundsOptions(RoundOptions(pipeline=str(file)), count=2, human=(human,))
    rounds = build_rounds(options)
    assert rounds.pretrain.recipe is not None
    optim = rounds.pretrain.recipe.optim
    assert (optim.steps, optim.batch_size) == ((308_334, 2400) if large else (97_223, 2880))
    plan = cost_of_rounds(check(rounds, given))
    costs = {step.name: step for step in plan.steps}
    assert costs["raw"].seconds is None
    assert costs["1-clean"].seconds is not None
    assert costs["1-clean"].seconds < 86_400
    assert costs["1-pretrain"].left == optim.steps
    assert costs["1-pretrain"].seconds is not None
    assert costs["1-pretrain"].seconds > 86_400 * 30  # on a processor that is months
    assert "days (by arithmetic)" in plan.text()
    assert not given.out.exists()


def _shape(folder: Path, kind: str, large: bool) -> Path:
    """Write what a checkpoint of BLIP's size says of itself, with a single weight."""
    vision = {"hidden_size": 1024, "num_hidden_layers": 24} if large else {}
    config = {
        "architectures": [kind],
        "model_type": "blip",
        "vision_config": {"image_size": 384, "patch_size": 16, **vision},
        "text_config": {"vocab_size": 30524},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    words = [f"[unused{number}]" for number in range(30_522)]  # a BERT's, as released
    words[0], words[102] = "[PAD]", "[SEP]"
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def test_errors_of_a_training_come_through_its_process(
    given: RoundsRequest, tmp_path: Path
) -> None:
    job = TrainJob(
        TrainPlan("captioner", steps=1, batch_size=2),
        (PairFolder("/nowhere"),),
        str(tmp_path / "x"),
        "embedded",
        True,
    )
    with pytest.raises(InputError, match="/nowhere is no folder"):
        run_job(job, 1, lambda *_: None, lambda _: None)


def test_titles_name_round_and_kind() -> None:
    assert Step("1-clean", 1, "clean", (), ()).title() == "round 1: clean"
