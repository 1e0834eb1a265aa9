"""Training the embedded models on human-quality pairs of the simulated web.

    python -m capfilt.demo.train --out DIR

As BLIP does it (section 3.3): one model is pre-trained, then fine-tuned twice, apart: the captioner
with the language-modelling loss, the filter with image-text contrast (ITC) and image-text matching
(ITM) with hard negatives. Every phase that is finished is kept in DIR/work, so a killed run goes on
with the phase it was in.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.demo import vocab
from capfilt.demo.grammar import describe
from capfilt.demo.pairs import SIDE, Pictures, batches, false_text, make_pictures
from capfilt.texts import normalise_for_filter

PROMPT: Final = "a picture of "
_MEAN: Final = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's
_STD: Final = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
_IGNORED: Final = -100
_LABEL_SMOOTHING: Final = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sizes of the training; the defaults gave the shipped models."""

    scenes: int = 30_000
    pretrain_steps: int = 5_000
    captioner_steps: int = 1_500
    filter_steps: int = 3_000
    batch: int = 64
    captions_per_image: int = 4
    single_steps: int = 800  # of the pre-training, on scenes of one item: colour and shape first
    seed: int = 1


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
    balance = torch.tensor([1.0, 2.0])  # 1 positive to 3 negatives, so that 0.5 is the middle
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


def optimise(
    label: str,
    parameters: list[torch.nn.Parameter],
    loss_at: Callable[[int], torch.Tensor],
    steps: int,
    peak: float,
    log: Path,
) -> float:
    """AdamW with warm-up and cosine decay; returns the mean loss of the last tenth."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    warm = max(1, min(300, steps // 10))
    losses: list[float] = []
    with log.open("a", encoding="utf-8") as lines, tqdm(total=steps, desc=label) as bar:
        for step in range(steps):
            share = step / warm if step < warm else (step - warm) / max(1, steps - warm)
            factor = share if step < warm else 0.5 * (1 + math.cos(math.pi * share))
            if label == "single items":
                factor = min(1.0, step / warm)  # only a beginning: nothing is annealed
            optimizer.param_groups[0]["lr"] = peak * max(factor, 0.01)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_at(step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
            bar.update(1)
            if (step + 1) % 100 == 0:
                mean = sum(losses[-100:]) / 100
                bar.set_postfix(loss=f"{mean:.3f}")
                lines.write(json.dumps({"phase": label, "step": step + 1, "loss": mean}) + "\n")
                lines.flush()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def train_captioner(
    model: Any, pictures: Pictures, plan: Schedule, label: str, steps: int, peak: float, log: Path
) -> float:
    """Train all of a captioner with LM, label smoothing 0.1; returns the final loss."""
    tokenizer = vocab.build_tokenizer()
    draws = batches(pictures, plan.batch, plan.seed if label == "pretrain" else plan.seed + 1)

    def loss_at(_: int) -> torch.Tensor:
        places, rng = next(draws)
        captions = [
            [describe(pictures.scenes[p], rng) for _ in range(plan.captions_per_image)]
            for p in places
        ]
        return caption_loss(
            model, tokenizer, pixels_of(pictures, places), captions, _LABEL_SMOOTHING
        )

    return optimise(label, list(model.parameters()), loss_at, steps, peak, log)


def single_items(pictures: Pictures) -> Pictures:
    """Return the pictures that show one item."""
    places = [place for place, scene in enumerate(pictures.scenes) if len(scene.items) == 1]
    return Pictures([pictures.scenes[place] for place in places], pictures.pixels[places])


def train_filter(model: Any, pictures: Pictures, plan: Schedule, peak: float, log: Path) -> float:
    """Train a filter with ITC and ITM; returns the final loss."""
    tokenizer = vocab.build_tokenizer()
    draws = batches(pictures, plan.batch, plan.seed + 2)
    temperature = torch.nn.Parameter(torch.tensor(0.07))

    def loss_at(_: int) -> torch.Tensor:
        places, rng = next(draws)
        scenes = [pictures.scenes[place] for place in places]
        texts = [describe(scene, rng) for scene in scenes]
        false = [false_text(s, t, rng) for s, t in zip(scenes, texts, strict=True)]
        return filter_loss(model, tokenizer, pixels_of(pictures, places), texts, false, temperature)

    parameters = [*model.parameters(), temperature]
    return optimise("filter", parameters, loss_at, plan.filter_steps, peak, log)


def filter_from(captioner: Any) -> Any:  # transformers' models are untyped
    """Return a filter that starts from a pre-trained captioner's image and text weights."""
    made = BlipForImageTextRetrieval(model_config())
    made.vision_model.load_state_dict(captioner.vision_model.state_dict())
    made.text_encoder.load_state_dict(captioner.text_decoder.bert.state_dict())
    return made


def save_model(model: Any, folder: Path) -> None:
    """Save as transformers does, in half precision, with tokenizer and preprocessing."""
    model.half().save_pretrained(folder)
    vocab.save_processors(folder, SIDE)


def train(plan: Schedule, out: Path, threads: int) -> dict[str, float]:
    """Run all phases that are not done yet; returns the final loss of each phase run now."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(threads)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log.jsonl"
    losses: dict[str, float] = {}
    pictures = make_pictures(plan.seed, plan.scenes, threads)
    base = BlipForConditionalGeneration(model_config())
    done = work / "pretrain.pt"
    if done.exists():
        base.load_state_dict(torch.load(done, weights_only=True))
    else:
        first = single_items(pictures)
        train_captioner(base, first, plan, "single items", plan.single_steps, 1e-3, log)
        losses["pretrain"] = train_captioner(
            base, pictures, plan, "pretrain", plan.pretrain_steps, 1e-3, log
        )
        torch.save(base.state_dict(), done)
    if not (out / "matcher" / "config.json").exists():
        matcher = filter_from(base)
        losses["filter"] = train_filter(matcher, pictures, plan, 5e-4, log)
        save_model(matcher, out / "matcher")
    if not (out / "captioner" / "config.json").exists():
        losses["captioner"] = train_captioner(
            base, pictures, plan, "captioner", plan.captioner_steps, 3e-4, log
        )
        save_model(base, out / "captioner")
    return losses


def main() -> None:
    """Train, and say what came out."""
    parser = argparse.ArgumentParser(description="Train the embedded models.")
    parser.add_argument("--out", type=Path, required=True, help="folder for both models")
    parser.add_argument("--seed", type=int, default=Schedule().seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the script")
    given = parser.parse_args()
    plan = replace(Schedule(), seed=given.seed)
    if given.quick:
        plan = replace(
            plan,
            scenes=256,
            single_steps=20,
            pretrain_steps=30,
            captioner_steps=5,
            filter_steps=10,
            batch=16,
        )
    print("About 50 minutes on 2 cores with bf16 matrix units; several times that without.")
    began = time.monotonic()
    losses = train(plan, given.out, given.threads)
    seconds = round(time.monotonic() - began)
    print(json.dumps({"seconds": seconds, "losses": losses, **asdict(plan)}, indent=1))


if __name__ == "__main__":
    main()
