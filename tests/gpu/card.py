"""What the card is, and how fast it multiplies and copies by itself."""

from functools import partial

import torch
import transformers

from tests.gpu.bench import Bench, Findings, seconds

_SIDE = 8192
_COPIED = 2**29  # numbers of 2 bytes


def ask(bench: Bench, found: Findings) -> None:
    """Say what there is: every other figure stands beside these."""
    device = bench.device
    found.figures["torch"], found.figures["transformers"] = (
        torch.__version__,
        transformers.__version__,
    )
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        found.figures |= {"card": card.name, "memory_gb": round(card.total_memory / 1e9, 1)}
    found.say(" ".join(f"{key} {value}" for key, value in found.figures.items()))
    side = _SIDE if device.startswith("cuda") else 256
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        x, y = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rate = 2.0 * side**3 / seconds(partial(torch.matmul, x, y)) / 1e12
        found.figures[f"matmul_{name}_tflops"] = round(rate, 1)
        found.say(f"  {name} matrix product {side}^3: {rate:,.1f} TFLOP/s")
    x = torch.zeros(_COPIED if device.startswith("cuda") else 2**20, device=device).bfloat16()
    y = torch.empty_like(x)
    rate = 4.0 * x.numel() / seconds(lambda: y.copy_(x)) / 1e12
    found.figures["copy_tb_s"] = round(rate, 2)
    found.say(f"  copy within the device: {rate:.2f} TB/s read and written")
