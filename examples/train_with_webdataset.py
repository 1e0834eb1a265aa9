"""A training that mixes texts of the web and synthetic ones itself, from tars:

    capfilt export RUN --to EXPORT --format webdataset
    python examples/train_with_webdataset.py EXPORT MATCHER [STEPS]

It trains the projections of a BLIP matcher by contrast, as CLIP is trained, and draws
a text of `.json` at every step as open_clip does, which reads the same tars:

    python -m open_clip_train.main --train-data 'EXPORT/data/train-{00000..00009}-of-00010.tar' \
        --dataset-type webdataset --json-text-key 'synthetic;web' --json-text-key-probs 0.75 0.25 …
"""

import random
import sys
from glob import glob
from typing import Any

import torch
import webdataset
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

BATCH = 16
SHARES = {"synthetic": 0.75, "web": 0.25}


def drawn(told: dict[str, Any]) -> str:
    """Draw a text of those that were kept of an image."""
    there = [name for name in SHARES if told[name]]
    (name,) = random.choices(there, [SHARES[name] for name in there])
    return str(told[name])


def main(export: str, matcher: str, steps: int) -> None:
    """Read, and train for some steps; prints the loss."""
    processor = BlipImageProcessorPil.from_pretrained(matcher)
    tokenizer = AutoTokenizer.from_pretrained(matcher)
    model = BlipForImageTextRetrieval.from_pretrained(matcher).train()
    tars = sorted(glob(f"{export}/data/*.tar"))
    read = webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000).decode("pil")
    pairs = read.to_tuple("jpg;png;webp", "json").batched(BATCH, partial=False).repeat()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step, (images, told) in zip(range(steps), pairs, strict=False):
        pixels = processor(images, return_tensors="pt").pixel_values
        texts = [drawn(each) for each in told]
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        image = normalize(model.vision_proj(model.vision_model(pixels)[0][:, 0]), dim=-1)
        text = normalize(model.text_proj(model.text_encoder(**encoded)[0][:, 0]), dim=-1)
        logits = image @ text.T / 0.07
        own = torch.arange(len(logits))
        loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
        optimizer.step()
        print(f"step {step + 1} loss {loss.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100)
