"""The same data for jobs that read WebDataset, such as open_clip's:

    python examples/train_with_webdataset.py EXPORT MATCHER TARS [STEPS]

Packs the export into tars (.jpg .txt .json a pair), then reads them back by `webdataset` and
trains the image and text projections of a BLIP matcher by contrast, as CLIP is trained.
"""

import sys
from glob import glob

import pyarrow.parquet as pq
import torch
import webdataset
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

BATCH = 16


def pack(export: str, tars: str) -> int:
    """Write tars/00000.tar, …: a basename for each pair; returns how many there are."""
    with webdataset.ShardWriter(f"{tars}/%05d.tar", maxcount=10_000, verbose=0) as sink:
        for file in sorted(glob(f"{export}/data/*.parquet")):
            for row in pq.read_table(file).to_pylist():
                image = row.pop("image")["bytes"]
                name = f"{row['key']}-{row['origin']}-{row['caption_index'] or 0}"
                sink.write({"__key__": name, "jpg": image, "txt": row["text"], "json": row})
    return int(sink.total)


def main(export: str, matcher: str, tars: str, steps: int) -> None:
    """Pack, read, and train for some steps; prints the loss."""
    if (count := pack(export, tars)) < BATCH:
        raise SystemExit(f"{export} has {count} pairs, which is less than a batch of {BATCH}")
    processor = BlipImageProcessorPil.from_pretrained(matcher)
    tokenizer = AutoTokenizer.from_pretrained(matcher)
    model = BlipForImageTextRetrieval.from_pretrained(matcher).train()
    read = webdataset.WebDataset(sorted(glob(f"{tars}/*.tar")), shardshuffle=False).shuffle(1000)
    pairs = read.decode("pil").to_tuple("jpg", "txt").batched(BATCH, partial=False).repeat()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step, (images, texts) in zip(range(steps), pairs, strict=False):
        pixels = processor(images, return_tensors="pt").pixel_values
        encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
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
    given, rest = sys.argv[1:4], sys.argv[4:]
    main(given[0], given[1], given[2], int(rest[0]) if rest else 100)
