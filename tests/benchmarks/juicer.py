"""data-juicer's captioning and matching operators, for `tests.benchmarks.models`.

It runs in an environment of its own (py-data-juicer and capfilt want different versions of the same
libraries), so it imports nothing of capfilt and speaks over standard input and output: a line
"ready", then for each line that it reads the work once, and a line with the seconds it took.
"""

import argparse
import functools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def prepared(given: argparse.Namespace) -> Any:  # a function without arguments that does the work
    """Load both operators; return a function that captions and matches all images once."""
    import torch
    from data_juicer.ops.filter.image_text_matching_filter import ImageTextMatchingFilter
    from data_juicer.ops.mapper.image_captioning_mapper import ImageCaptioningMapper
    from data_juicer.utils.constant import Fields
    from data_juicer.utils.mm_utils import SpecialTokens
    from data_juicer.utils.model_utils import get_model

    torch.set_num_threads(given.threads)
    mapper = ImageCaptioningMapper(
        hf_img2seq=str(given.folder / "captioner"),
        caption_num=given.captions,
        keep_candidate_mode="all",
        keep_original_sample=False,
        prompt="a picture of",
        gpu_batch_size=given.batch,
    )
    judge = ImageTextMatchingFilter(hf_blip=str(given.folder / "matcher"))
    model, _ = get_model(mapper.model_key, None, mapper.use_cuda())
    # The operator asks for up to 128 new tokens; here it writes as many as everybody else.
    long, lengths = model.generate, {"max_new_tokens": given.steps, "min_new_tokens": given.steps}
    model.generate = functools.partial(_generate, long, lengths)
    work = json.loads((given.folder / "work.json").read_text(encoding="utf-8"))

    def do() -> None:
        images = [[path] for path in work["images"]]
        texts = [f"{SpecialTokens.image} {own[0]}" for own in work["texts"]]
        for start in range(0, len(images), given.batch):
            part = slice(start, start + given.batch)
            mapper.process_batched({"text": texts[part], "images": images[part]})
        for image, own in zip(images, work["texts"], strict=True):
            for text in own:
                sample = {
                    "text": f"{SpecialTokens.image} {text}",
                    "images": image,
                    Fields.stats: {},
                }
                judge.compute_stats_single(sample)

    return do


def _generate(long: Any, lengths: dict[str, int], **given: Any) -> Any:
    return long(**{**given, **lengths})


def main() -> None:
    """Say when ready, then work once for each line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--captions", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    do = prepared(parser.parse_args())
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        do()
        print(f"took {time.perf_counter() - began}", flush=True)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}", flush=True)


if __name__ == "__main__":
    main()
