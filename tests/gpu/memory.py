"""What happens where a device's memory is short: tiles are halved, and the work goes on."""

import torch

from tests.gpu.bench import Bench, Findings, free

_ROOM_GB = 2.0  # beside the weights: less than full tiles take
_IMAGES = 96


def ask(bench: Bench, found: Findings) -> None:
    """Caption with little memory, and with all of it."""
    if not bench.device.startswith("cuda"):
        found.say("  left out: a CPU's memory is not bounded by torch")
        return
    images, keys = bench.pixels(_IMAGES), [str(n) for n in range(_IMAGES)]
    full = bench.captioner(1, "bf16").caption(images, keys)
    free()
    captioner = bench.captioner(1, "bf16")
    total = torch.cuda.get_device_properties(bench.device).total_memory
    bound = torch.cuda.memory_allocated() + _ROOM_GB * 1e9
    before = captioner.sizes
    torch.cuda.set_per_process_memory_fraction(bound / total)
    try:
        written = captioner.caption(images, keys)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    equal = sum(a == b for a, b in zip(full, written, strict=True)) / len(full)
    found.figures |= {"images_a_tile": captioner.sizes.images, "equal": equal}
    found.expect(
        captioner.sizes.images < before.images and all(all(own) for own in written),
        f"with {_ROOM_GB:.0f} GB beside the weights: tiles of {captioner.sizes.images} images "
        f"instead of {before.images}, every image captioned, {equal:.0%} of the texts the same",
    )
