"""Training the embedded models on human-quality pairs of the simulated web.

    python -m capfilt.demo.train --out DIR

As BLIP does it (section 3.3): one model is pre-trained, then fine-tuned twice, apart: the captioner
with the language-modelling loss, the filter with image-text contrast (ITC) and image-text matching
(ITM) with hard negatives. The shared pre-training has the language-modelling loss alone.

DIR/work holds a checkpoint of every phase, written every few minutes: the same command goes on
where a killed one was. DIR/captioner, DIR/matcher and DIR/quality.json are the results.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final, Self

import torch
import transformers
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.demo import vocab
from capfilt.demo.grammar import describe
from capfilt.demo.pairs import SIDE, Pictures, batches, false_text, make_pictures
from capfilt.demo.quality import PROMPT, Quality, measure
from capfilt.errors import CapfiltError, InputError
from capfilt.texts import normalise_for_filter

_MEAN: Final = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's
_STD: Final = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
_IGNORED: Final = -100
_LABEL_SMOOTHING: Final = 0.1


_STEPS_A_CHECKPOINT: Final = 500
_DURATION: Final = (
    "About 80 minutes on one core with bf16 matrix units (AMX), little less on two; several times "
    "that without."
)
LossAt = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """One optimisation: `peak` is its highest learning rate, reached after the warm-up."""

    name: str
    steps: int
    peak: float
    seed: int
    decays: bool = True

    def learning_rate(self, step: int) -> float:
        """Return the rate of `step`: linear warm-up, then cosine to nearly nothing, or constant."""
        warm = max(1, min(300, self.steps // 10))
        if step < warm:
            factor = step / warm
        elif self.decays:
            share = (step - warm) / max(1, self.steps - warm)
            factor = 0.5 * (1 + math.cos(math.pi * share))
        else:
            factor = 1.0
        return self.peak * max(factor, 0.01)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sizes of the training; the defaults gave the shipped models."""

    scenes: int = 40_000
    pretrain_steps: int = 6_000
    captioner_steps: int = 1_500
    filter_steps: int = 3_000
    batch: int = 64
    captions_per_image: int = 4
    single_steps: int = 500  # of the pre-training, on scenes of one item: colour and shape first
    seed: int = 1

    def phases(self) -> tuple[Phase, Phase, Phase, Phase]:
        """Return the beginning and the rest of the pre-training, the captioner, the filter."""
        return (
            # Only a beginning, so nothing is annealed.
            Phase("single items", self.single_steps, 1e-3, self.seed + 1, decays=False),
            Phase("pretrain", self.pretrain_steps, 1e-3, self.seed),
            Phase("captioner", self.captioner_steps, 3e-4, self.seed + 1),
            Phase("filter", self.filter_steps, 5e-4, self.seed + 2),
        )


QUICK: Final = Schedule(
    scenes=256, single_steps=30, pretrain_steps=30, captioner_steps=10, filter_steps=30, batch=16
)


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean losses of a phase: of its first and of its last tenth."""

    first: float
    last: float

    @classmethod
    def of(cls, losses: list[float]) -> Self:
        """Summarise the losses of all steps."""
        tenth = max(1, len(losses) // 10)
        return cls(sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth)


@dataclass(frozen=True, slots=True)
class Run:
    """One training with its working folder."""

    plan: Schedule
    work: Path

    @property
    def log(self) -> Path:
        """The mean loss of every hundred steps, a JSON line each."""
        return self.work / "log.jsonl"

    def checkpoint(self, phase: Phase) -> Path:
        """Where a phase keeps its state."""
        return self.work / f"{phase.name.replace(' ', '-')}.pt"

    def draws(self, pictures: Pictures, phase: Phase) -> Iterator[tuple[list[int], Random]]:
        """Return the batches of a phase from where its checkpoint is."""
        file = self.checkpoint(phase)
        done = len(torch.load(file, weights_only=True)["losses"]) if file.exists() else 0
        return batches(pictures, self.plan.batch, phase.seed, done)


def model_config() -> BlipConfig:
    """Return the architecture: 64 px, patch 8, width 128, 4 vision and 3 text layers."""
    text = {
        "vocab_size": len(vocab.vocabulary()),
        "hidden_size": 128,
        "encoder_hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "projection_dim": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": vocab.PAD,
        "bos_token_id": vocab.DEC,
        "eos_token_id": vocab.SEP,
        "sep_token_id": vocab.SEP,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "projection_dim": 64,
        # transformers' default is 1e-10: an image encoder that starts at zero learns very late.
        "initializer_range": 0.02,
    }
    return BlipConfig(
        text_config=text, vision_config=vision, projection_dim=64, image_text_hidden_size=64
    )


def new_captioner() -> Any:  # transformers' models are untyped
    """Return an untrained captioner whose image positions start as sines of row and column.

    Positions that start near zero are drowned by what a patch shows, and which of two things is
    the left one is then learnt very late, if at all.
    """
    made = BlipForConditionalGeneration(model_config())
    with torch.no_grad():
        made.vision_model.embeddings.position_embedding[:, 1:] = _position_sines(8, 128)
    return made


def _position_sines(side: int, width: int) -> torch.Tensor:
    """Return (1, side * side, width) sines and cosines of row and column, of unit amplitude."""
    quarter = width // 4
    waves = 0.9 * math.pi * torch.logspace(0.0, -1.3, quarter)
    angles = 2.0 * torch.linspace(0.0, 1.0, side)[:, None] * waves
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(side, side, width // 2)
    columns = line[None, :].expand(side, side, width // 2)
    return torch.cat([rows, columns], dim=2).reshape(1, side * side, width)


def pixels_of(pictures: Pictures, places: list[int]) -> torch.Tensor:
    """Return normalised pixels (B, 3, 64, 64)."""
    taken = torch.from_numpy(pictures.pixels[places]).permute(0, 3, 1, 2).float() / 255.0
    return (taken - _MEAN) / _STD


def caption_loss(
    model: Any, tokenizer: Any, pixels: torch.Tensor, captions: list[list[str]], smoothing: float
) -> torch.Tensor:
    """Return the LM loss, the prompt masked: captions[i] are all of image i (BLIP, sec. 3.2)."""
    each = len(captions[0])
    texts = [PROMPT + text for own in captions for text in own]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids = encoded.input_ids.clone()
    ids[:, 0] = vocab.DEC
    labels = ids.masked_fill(ids == vocab.PAD, _IGNORED)
    labels[:, : len(tokenizer(PROMPT).input_ids) - 1] = _IGNORED
    states = model.vision_model(pixels).last_hidden_state.repeat_interleave(each, 0)
    logits = model.text_decoder(
        input_ids=ids,
        attention_mask=encoded.attention_mask,
        encoder_hidden_states=states,
        is_decoder=True,
    ).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        label_smoothing=smoothing,
        ignore_index=_IGNORED,
    )


def filter_loss(
    model: Any,
    tokenizer: Any,
    pixels: torch.Tensor,
    texts: list[str],
    false_texts: list[str],
    temperature: torch.Tensor,
) -> torch.Tensor:
    """Return ITC + ITM: each pair against a hard text, a hard image, and a false text."""
    states = model.vision_model(pixels).last_hidden_state
    ids, mask = _filter_tokens(tokenizer, [*texts, *false_texts])
    count = len(texts)
    plain = model.text_encoder(input_ids=ids[:count], attention_mask=mask[:count])
    image_features = normalize(model.vision_proj(states[:, 0]), dim=-1)
    text_features = normalize(model.text_proj(plain.last_hidden_state[:, 0]), dim=-1)
    similarity = (image_features @ text_features.T).float() / temperature.clamp(0.01, 0.5)
    # Equal captions in one batch are both right; the target shares the mass among them.
    same = torch.tensor([[a == b for b in texts] for a in texts]).float()
    target = same / same.sum(1, keepdim=True)
    itc = (cross_entropy(similarity, target) + cross_entropy(similarity.T, target)) / 2
    with torch.no_grad():
        weights = torch.softmax(similarity, 1).masked_fill(same > 0, 0.0) + 1e-6 * (1 - same)
        hard_text = torch.multinomial(weights, 1).squeeze(1)
        weights = torch.softmax(similarity.T, 1).masked_fill(same > 0, 0.0) + 1e-6 * (1 - same)
        hard_image = torch.multinomial(weights, 1).squeeze(1)
    own = torch.arange(count)
    text_rows = torch.cat([own, hard_text, own, own + count])
    image_rows = torch.cat([own, own, hard_image, own])
    grounded_ids = ids.clone()
    grounded_ids[:, 0] = vocab.ENC
    grounded = model.text_encoder(
        input_ids=grounded_ids[text_rows],
        attention_mask=mask[text_rows],
        encoder_hidden_states=states[image_rows],
    )
    logits = model.itm_head(grounded.last_hidden_state[:, 0]).float()
    labels = torch.cat([torch.ones(count), torch.zeros(3 * count)]).long()
    balance = torch.tensor([1.0, 2.0])  # one positive to three negatives weighs as two to three
    return itc + cross_entropy(logits, labels, weight=balance)


def _filter_tokens(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = tokenizer(
        [normalise_for_filter(text) for text in texts],
        padding=True,
        truncation=True,
        max_length=35,
        return_tensors="pt",
    )
    return encoded.input_ids, encoded.attention_mask


def open_run(plan: Schedule, work: Path) -> Run:
    """Make the working folder, or find the one of a training that was cut off.

    Raises:
        InputError: it is that of a training with another schedule.
    """
    work.mkdir(parents=True, exist_ok=True)
    file, told = work / "schedule.json", json.dumps(asdict(plan))
    if file.exists() and file.read_text(encoding="utf-8") != told:
        raise InputError(
            f"{work} holds a training with another schedule ({file.name}); "
            "give another --out or remove it"
        )
    file.write_text(told, encoding="utf-8")
    return Run(plan, work)


def optimise(
    phase: Phase, parameters: list[torch.nn.Parameter], loss_at: LossAt, run: Run
) -> Losses:
    """Run a phase by AdamW with warm-up, from its checkpoint where there is one."""
    optimizer = torch.optim.AdamW(parameters, lr=phase.peak, weight_decay=0.05, betas=(0.9, 0.98))
    file = run.checkpoint(phase)
    losses = _resume(file, parameters, optimizer)
    done = len(losses)
    with (
        run.log.open("a", encoding="utf-8") as log,
        tqdm(total=phase.steps, initial=done, desc=phase.name) as bar,
    ):
        for step in range(done, phase.steps):
            optimizer.param_groups[0]["lr"] = phase.learning_rate(step)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_at()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
            bar.update(1)
            if len(losses) % 100 == 0:
                mean = sum(losses[-100:]) / 100
                bar.set_postfix(loss=f"{mean:.3f}")
                log.write(json.dumps({"phase": phase.name, "step": step + 1, "loss": mean}) + "\n")
                log.flush()
            if len(losses) % _STEPS_A_CHECKPOINT == 0:
                _keep(file, parameters, optimizer, losses)
    _keep(file, parameters, optimizer, losses)
    return Losses.of(losses)


def _keep(
    file: Path,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
) -> None:
    """Write a checkpoint; a run killed here has the one before."""
    draft = file.with_suffix(".tmp")
    weights = [parameter.detach() for parameter in parameters]
    state = {"weights": weights, "optimizer": optimizer.state_dict(), "losses": losses}
    torch.save(state, draft)
    os.replace(draft, file)


def _resume(
    file: Path, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Load a checkpoint if there is one; returns the losses of the steps done."""
    if not file.exists():
        return []
    state = torch.load(file, weights_only=True)
    with torch.no_grad():
        for parameter, kept in zip(parameters, state["weights"], strict=True):
            parameter.copy_(kept)
    optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = state["losses"]
    return losses


def train_captioner(model: Any, pictures: Pictures, phase: Phase, run: Run) -> Losses:
    """Train all of a captioner with LM, label smoothing 0.1."""
    tokenizer = vocab.build_tokenizer()
    each = run.plan.captions_per_image
    draws = run.draws(pictures, phase)

    def loss_at() -> torch.Tensor:
        places, rng = next(draws)
        captions = [[describe(pictures.scenes[p], rng) for _ in range(each)] for p in places]
        return caption_loss(
            model, tokenizer, pixels_of(pictures, places), captions, _LABEL_SMOOTHING
        )

    return optimise(phase, list(model.parameters()), loss_at, run)


def single_items(pictures: Pictures) -> Pictures:
    """Return the pictures that show one item."""
    places = [place for place, scene in enumerate(pictures.scenes) if len(scene.items) == 1]
    return Pictures([pictures.scenes[place] for place in places], pictures.pixels[places])


def train_filter(model: Any, pictures: Pictures, phase: Phase, run: Run) -> Losses:
    """Train a filter with ITC and ITM."""
    tokenizer = vocab.build_tokenizer()
    draws = run.draws(pictures, phase)
    temperature = torch.nn.Parameter(torch.tensor(0.07))

    def loss_at() -> torch.Tensor:
        places, rng = next(draws)
        scenes = [pictures.scenes[place] for place in places]
        texts = [describe(scene, rng) for scene in scenes]
        false = [false_text(s, t, rng) for s, t in zip(scenes, texts, strict=True)]
        return filter_loss(model, tokenizer, pixels_of(pictures, places), texts, false, temperature)

    return optimise(phase, [*model.parameters(), temperature], loss_at, run)


def filter_from(captioner: Any) -> Any:  # transformers' models are untyped
    """Return a filter that starts from a pre-trained captioner's image and text weights."""
    made = BlipForImageTextRetrieval(model_config())
    made.vision_model.load_state_dict(captioner.vision_model.state_dict())
    made.text_encoder.load_state_dict(captioner.text_decoder.bert.state_dict())
    return made


def save_model(model: Any, folder: Path) -> None:
    """Save as transformers does, weights in half precision, with tokenizer and preprocessing.

    The configuration says float32, so that they load as that: half precision is for the disk, on
    a CPU it is slow and coarse.
    """
    model.half().save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    vocab.save_processors(folder, SIDE)


def train(plan: Schedule, out: Path, threads: int) -> dict[str, Losses]:
    """Run all phases, or what is left of them; returns the losses of each."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(threads)
    run = open_run(plan, out / "work")
    single, pretrain, fine_tune, match = phases = plan.phases()
    pictures = make_pictures(plan.seed, plan.scenes, threads)
    base = new_captioner()
    losses = [
        train_captioner(base, single_items(pictures), single, run),
        train_captioner(base, pictures, pretrain, run),
    ]
    matcher = filter_from(base)
    losses.append(train_captioner(base, pictures, fine_tune, run))
    save_model(base, out / "captioner")
    losses.append(train_filter(matcher, pictures, match, run))
    save_model(matcher, out / "matcher")
    return {phase.name: lost for phase, lost in zip(phases, losses, strict=True)}


def report(plan: Schedule, losses: dict[str, Losses], seconds: float, quality: Quality) -> str:
    """Return what quality.json says: figures, sizes, seeds, time and versions."""
    told = {
        "quality": asdict(quality),
        "schedule": asdict(plan),
        "final_losses": {name: round(lost.last, 4) for name, lost in losses.items()},
        "seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return json.dumps(told, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m capfilt.demo.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder for both models")
    parser.add_argument("--seed", type=int, default=Schedule().seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the script")
    given = parser.parse_args(arguments)
    plan = replace(QUICK if given.quick else Schedule(), seed=given.seed)
    print("a minute" if given.quick else _DURATION, flush=True)
    began = time.monotonic()
    try:
        losses = train(plan, given.out, given.threads)
    except CapfiltError as error:
        parser.exit(error.exit_code, f"{error}\n")
    seconds = time.monotonic() - began
    for name, lost in losses.items():
        print(f"{name:<14} loss {lost.first:.3f} -> {lost.last:.3f}")
    quality = measure(given.out, 100 if given.quick else 2000)
    told = report(plan, losses, seconds, quality)
    (given.out / "quality.json").write_text(told, encoding="utf-8")
    print(quality.table())
    if losses["single items"].last >= losses["single items"].first:
        parser.exit(1, "the loss did not fall: something is wrong with the training\n")


if __name__ == "__main__":
    main()
