"""What a training job does with the result: python examples/read_the_dataset.py EXPORT_FOLDER."""

import sys

from datasets import load_dataset


def main(folder: str) -> None:
    """Open the cleaned pairs as images and texts."""
    pairs = load_dataset("parquet", data_files=f"{folder}/data/*.parquet", split="train")
    print(f"{len(pairs):,} pairs")
    for pair in pairs.select(range(min(3, len(pairs)))):
        print(f"{pair['image'].size} {pair['origin']:<9} {pair['itm_score']:.2f} {pair['text']!r}")


if __name__ == "__main__":
    main(sys.argv[1])
