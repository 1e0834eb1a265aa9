"""Opens an export by a training job's own reader: python -m tests.readers READER FOLDER.

It runs in an environment that has the reader and need not have capfilt. Prints one JSON object:
reader, version, and for every sample in it the SHA-256 of the decoded picture and the text.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

Samples = Iterator[tuple[str, str]]


def pixels_of(picture: Any) -> str:  # a PIL image
    """Return the digest of a picture's size and 8-bit RGB pixels."""
    picture = picture.convert("RGB")
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def by_webdataset(folder: Path) -> Samples:
    """Read by `webdataset`, as its README does."""
    import webdataset

    tars = [str(path) for path in sorted((folder / "data").glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    for image, text, told in dataset.to_tuple("jpg;png;webp", "txt", "json"):
        assert text in [each["text"] for each in told["texts"] if each["kept"]]
        yield pixels_of(image), text


def by_datasets(folder: Path) -> Samples:
    """Read by `datasets`, which takes the format from the card."""
    import datasets

    cache = str(folder.parent / f"{folder.name}.cache")
    for row in datasets.load_dataset(str(folder), split="train", cache_dir=cache):
        image = next(row[n] for n in ("image", "jpg", "png", "webp", "images") if n in row)
        if isinstance(image, list):
            (image,) = image
        if "messages" in row:
            (turn,) = [t["content"] for t in row["messages"] if t["role"] == "assistant"]
            yield pixels_of(image), turn
        else:
            yield pixels_of(image), row["text"] if "text" in row else row["txt"]


def open_clip_samples(folder: Path, **more: Any) -> Samples:
    """Read by `get_wds_dataset`, the loader of open_clip's training, without a tokenizer."""
    import open_clip_train.data as reader
    import torch

    given = {
        "train_data": str(folder / "data" / "train-{00000..%05d}-of-%05d.tar"),
        **{"train_num_samples": None, "val_data": None, "val_num_samples": None},
        **{"train_data_upsampling_factors": None, "dataset_resampled": False, "seed": 0},
        **{"batch_size": 1, "workers": 1, "world_size": 1, "rank": 0, "distributed": False},
        **more,
    }
    count = len(list((folder / "data").glob("*.tar")))
    given["train_data"] %= (count - 1, count)

    def seen(picture: Any) -> torch.Tensor:  # a digest stands for the picture
        return torch.tensor(list(bytes.fromhex(pixels_of(picture))))

    def code(texts: Any) -> torch.Tensor:  # a text as the tokens of its UTF-8
        text = texts if isinstance(texts, str) else texts[0]
        return torch.tensor([list(text.encode())])

    info = reader.get_wds_dataset(argparse.Namespace(**given), seen, is_train=True, tokenizer=code)
    for batch in info.dataloader:
        images, texts = (batch["image"], batch["text"]) if isinstance(batch, dict) else batch
        for image, text in zip(images, texts, strict=True):
            yield bytes(image.tolist()).hex(), bytes(text.tolist()).decode()


def by_open_clip(folder: Path) -> Samples:
    """Read the `.txt` members."""
    yield from open_clip_samples(folder)


def by_open_clip_json(folder: Path) -> Samples:
    """Read fields of the `.json` members, drawn by probability (`--json-text-key-probs`)."""
    import open_clip_train.data as reader

    if not hasattr(reader, "JsonCaptionExtractor"):
        raise SystemExit("this open_clip has no --json-text-key yet")
    probs = {"json_text_key": "synthetic;web", "json_text_key_probs": [0.75, 0.25]}
    yield from open_clip_samples(folder, **probs)


def by_energon(folder: Path) -> Samples:
    """Read by Megatron Energon, after its own indexing."""
    import torchvision.transforms.functional as transforms
    from megatron.energon import TaskEncoder, WorkerConfig, get_savable_loader, get_train_dataset

    tool = Path(sys.executable).with_name("energon")
    asked = [str(tool), "prepare", "--tar-index-only", "--non-interactive", "--num-workers", "1"]
    subprocess.run([*asked, str(folder)], check=True, stdout=subprocess.DEVNULL)
    dataset = get_train_dataset(
        str(folder),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=TaskEncoder(),
        repeat=False,
    )
    for sample in get_savable_loader(dataset):
        yield pixels_of(transforms.to_pil_image(sample.image)), sample.caption


def by_trl(folder: Path) -> Samples:
    """Read by `datasets`, and prepare and collate as TRL's trainer of vision models does."""
    import datasets
    from trl.data_utils import is_conversational
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    class Processor:
        """Stands where a model's processor is, and keeps what the collator hands it."""

        def apply_chat_template(self, messages: Any, **_: Any) -> Any:
            raise StopIteration(messages)

    cache = str(folder.parent / f"{folder.name}.cache")
    for row in datasets.load_dataset(str(folder), split="train", cache_dir=cache):
        assert is_conversational(row)
        try:
            DataCollatorForVisionLanguageModeling(Processor())([row])
        except StopIteration as told:
            question, answer = told.value[0]
        image, asked = question["content"]
        assert (image["type"], asked["type"]) == ("image", "text")
        yield pixels_of(image["image"]), answer["content"][0]["text"]


def by_mlcroissant(folder: Path) -> Samples:
    """Read the pairs that croissant.json describes, and the table of scores."""
    import mlcroissant

    dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
    assert not dataset.metadata.issues.errors
    texts = list(dataset.records("scores"))
    kept = [row["scores/text"] for row in texts if row["scores/kept"]]
    count = 0
    if any(each.name == "pairs" for each in dataset.metadata.record_sets):
        for row in dataset.records("pairs"):
            count += 1
            yield pixels_of(row["pairs/image"]), row["pairs/text"].decode()
        assert count == len(kept)


READERS: dict[str, tuple[str, Callable[[Path], Samples]]] = {
    "webdataset": ("webdataset", by_webdataset),
    "datasets": ("datasets", by_datasets),
    "open_clip": ("open_clip_torch", by_open_clip),
    "open_clip_json": ("open_clip_torch", by_open_clip_json),
    "energon": ("megatron-energon", by_energon),
    "trl": ("trl", by_trl),
    "mlcroissant": ("mlcroissant", by_mlcroissant),
}


def main(reader: str, folder: str) -> None:
    """Read, and print what was read."""
    logging.disable(logging.WARNING)
    package, read = READERS[reader]
    found = sorted(read(Path(folder)))
    print(json.dumps({"reader": package, "version": version(package), "samples": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
