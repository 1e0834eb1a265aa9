"""A training job of one's own: python examples/train_with_datasets.py EXPORT MODEL [STEPS].

Plain `datasets`, torch and transformers: EXPORT is a folder that capfilt has written, MODEL any
BLIP captioner (a folder or a hub name).
"""

import sys
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

PROMPT = "a picture of "


def main(export: str, model_name: str, steps: int) -> None:
    """Fine-tune the captioner on the export's pairs; prints the loss."""
    pairs = load_dataset("parquet", data_files=f"{export}/data/*.parquet", split="train")
    processor = BlipImageProcessorPil.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = BlipForConditionalGeneration.from_pretrained(model_name).train()
    given = 1 + len(tokenizer(PROMPT, add_special_tokens=False).input_ids)  # and the start token

    def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [PROMPT + row["text"] for row in rows]
        encoded = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=40,
            return_token_type_ids=False,  # a BERT tokenizer's, which BLIP does not take
            return_tensors="pt",
        )
        encoded.input_ids[:, 0] = model.config.text_config.bos_token_id
        labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
        labels[:, :given] = -100  # the prompt is given, not learnt
        pixels = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")
        return {"pixel_values": pixels.pixel_values, "labels": labels, **encoded}

    loader = torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True, collate_fn=collated)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step, batch in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        print(f"step {step + 1} loss {loss.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100)
