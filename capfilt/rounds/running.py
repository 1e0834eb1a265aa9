"""Doing the steps that are not done, in order; each of them goes on where a kill left it."""

import time
from dataclasses import dataclass
from pathlib import Path

from capfilt.commands.evaluate import EvaluateOptions, evaluate
from capfilt.commands.run import Against, run_round
from capfilt.engine.finish import Finished
from capfilt.engine.precision import precision_warning
from capfilt.errors import DamageError, InputError, NothingUsableError
from capfilt.inputs import open_input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory
from capfilt.models.checkpoints import resolve_model
from capfilt.progress import Progress, Say, unsaid
from capfilt.recipe.round import Round
from capfilt.rounds.checks import CheckedRounds, RoundsRequest, check, samples_of
from capfilt.rounds.config import Rounds
from capfilt.rounds.result import RoundsResult, models_of, summary, write_summary
from capfilt.rounds.steps import OUTCOMES, RUN, Cleaned, Outcome, Scored, Step
from capfilt.train.plan import PairFolder, TrainPlan
from capfilt.train.process import Fitted, TrainJob, run_job
from capfilt.wording import counted

MODEL = "model"  # a training's folder of results


def run_rounds(rounds: Rounds, given: RoundsRequest, progress: Progress, say: Say) -> RoundsResult:
    """Run the bootstrap loop, or go on with it, or find that it is done.

    Raises:
        InputError: something that the user gave cannot be used, or the folder holds other rounds;
            nothing was done then.
        CapfiltError: what a step raises; finished steps are kept.
    """
    checked = check(rounds, given)
    slow = precision_warning([plan.precision for plan in rounds.trainings], checked.devices)
    if slow is not None:
        say(slow)
    checked.place.record(checked.steps)
    doing = _Runner(checked, progress, say)
    for step in checked.steps:
        outcome = checked.place.outcome(step, OUTCOMES[step.kind])
        if outcome is not None:
            say(f"{step.title()}: done before")
            continue
        say(f"{step.title()} …")
        began = time.monotonic()
        outcome = doing.outcome(step)
        checked.place.keep(step, outcome)
        say(f"{step.title()}: {_told(outcome)}, {time.monotonic() - began:,.0f} s")
    found = summary(checked.place, checked.steps)
    write_summary(checked.place.root, found)
    return found


@dataclass(frozen=True, slots=True)
class _Runner:
    """What a step needs to be done."""

    checked: CheckedRounds
    progress: Progress
    say: Say

    def outcome(self, step: Step) -> Outcome:
        """Do a step, or go on with it."""
        rounds = self.checked.rounds
        match step.kind:
            case "raw" | "clean":
                return self._cleaned(step)
            case "pretrain":
                name, fresh = rounds.start
                data = rounds.pretraining_data(str(self._dataset(step.reads[0])))
                return self._trained(step, rounds.pretrain, data, name, fresh)
            case "captioner":
                return self._fine_tuned(step, rounds.captioner)
            case "filter":
                return self._fine_tuned(step, rounds.filter)
            case "evaluate":
                return self._scored(step)

    def _cleaned(self, step: Step) -> Cleaned:
        checked, root = self.checked, self.checked.place.root
        memory = Memory(Ledger(root / RUN), checked.rounds.first.shard_rows)
        data = open_input(checked.spec, memory)
        recipe, against = recipe_of(checked, step), Against.of(checked.spec)
        ran = run_round(
            data, recipe, root / RUN, checked.hardware, self.progress, self.say, against
        )
        if ran.error is not None:
            raise NothingUsableError(f"{step.title()}: {ran.error}")
        if ran.finished is None:
            raise DamageError(f"{ran.run_dir} is not complete; run the same command again")
        if not ran.finished.rows:
            raise InputError(
                f"{step.title()} keeps no text at all, so there is nothing to train on; train "
                "longer or lower --threshold, in another --out (models that are trained already "
                "may begin it: --captioner, --matcher)"
            )
        return _counted(ran.finished, root)

    def _fine_tuned(self, step: Step, plan: TrainPlan) -> Fitted:
        start = self.checked.place.root / step.reads[0] / MODEL
        return self._trained(step, plan, self.checked.rounds.human, str(start), False)

    def _trained(
        self, step: Step, plan: TrainPlan, data: tuple[PairFolder, ...], start: str, fresh: bool
    ) -> Fitted:
        checked = self.checked
        out = str(checked.place.root / step.name)
        job = TrainJob(plan, data, out, start, fresh, checked.devices)
        steps = plan.recipe_for(sum(map(samples_of, data)), checked.start).optim.steps
        with self.progress(step.name, steps, unit="step") as told:
            return run_job(job, checked.processes, told, self.say)

    def _scored(self, step: Step) -> Scored:
        captioner, matcher = _models(self.checked, step.round)
        options = EvaluateOptions(
            captioner=captioner,
            matcher=matcher,
            precision=self.checked.rounds.filter.precision,
            device=self.checked.devices[0],
        )
        found = evaluate(
            str(self.checked.held_out),
            options,
            self.progress,
            unsaid,  # how slow bf16 is was told at the start
        )
        if found.retrieval_itm is None or found.captions is None:
            raise DamageError(f"{step.title()} lacks figures")
        itm, captions = found.retrieval_itm, found.captions
        return Scored(itm.text[1], itm.image[1], captions.cider, captions.bleu[3])

    def _dataset(self, name: str) -> Path:
        """Return the export of a step; where it was removed since, it is written again."""
        (step,) = (each for each in self.checked.steps if each.name == name)
        outcome = self.checked.place.done(step, Cleaned)
        folder = self.checked.place.root / outcome.dataset
        if not (folder / "manifest.json").exists():
            self.say(f"{step.title()}: {folder} was removed; it is written again")
            again = self._cleaned(step)
            if again.digest != outcome.digest:
                raise DamageError(
                    f"{folder} was removed, and comes out with the digest {again.digest}, not "
                    f"{outcome.digest}: the run folder was changed (`capfilt retry`?)"
                )
        return folder


def recipe_of(checked: CheckedRounds, step: Step) -> Round:
    """Return the recipe of a cleaning, with the models that the round before trained."""
    rounds = checked.rounds
    if step.kind == "raw":
        return rounds.raw()
    if not step.reads:
        return rounds.first
    captioner, matcher = _models(checked, step.round - 1)
    return rounds.first.next(
        captioner=resolve_model(captioner, "captioner"), matcher=resolve_model(matcher, "matcher")
    )


def _models(checked: CheckedRounds, number: int) -> tuple[str, str]:
    captioner, matcher = models_of(number)
    return str(checked.place.root / captioner), str(checked.place.root / matcher)


def _counted(finished: Finished, root: Path) -> Cleaned:
    funnel = finished.funnel
    return Cleaned(
        dataset=str(Path(finished.dataset).relative_to(root)),
        rows=finished.rows,
        digest=finished.digest,
        web_judged=funnel.web_judged,
        web_kept=funnel.web_kept,
        synthetic_judged=funnel.synthetic_judged,
        synthetic_kept=funnel.synthetic_kept,
    )


def _told(outcome: Outcome) -> str:
    match outcome:
        case Cleaned():
            return counted(outcome.rows, "pair")
        case Fitted():
            return f"{counted(outcome.steps, 'step')}, loss {outcome.last['loss']:.3f}"
        case Scored():
            return f"TR@1 {100 * outcome.tr1:.1f}, CIDEr {100 * outcome.cider:.1f}"
