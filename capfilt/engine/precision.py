"""Which precision suits which device: refusals, warnings, and what another one would bring.

A precision is never chosen for the user: it changes last bits, and with them the identity of every
caption and score, so that machines of one run that differ would each compute their own.
"""

from collections.abc import Sequence
from typing import Final

from capfilt.errors import InputError
from capfilt.models.checkpoints import weight_bytes
from capfilt.models.recipe import ModelRef, Precision

_LARGE_MODEL_BYTES: Final = 200_000_000
_DECIDE: Final = "(it is part of the run's identity: decide before you begin)"


def check_precisions(precisions: Sequence[Precision], devices: Sequence[str]) -> None:
    """Refuse what a device does not have.

    Raises:
        InputError: tf32 or fp16 without a GPU.
    """
    if devices[0] != "cpu":
        return
    for wanted, instead in (("tf32", "fp32"), ("fp16", "bf16 or fp32")):
        if wanted in precisions:
            raise InputError(
                f"--precision {wanted} is for GPUs, and this run would compute on the CPU; take "
                f"{instead}, or --device cuda"
            )


def precision_warning(precisions: Sequence[Precision], devices: Sequence[str]) -> str | None:
    """Return a warning for bf16 where the hardware has no units for it, or None."""
    if "bf16" not in precisions:
        return None
    if devices[0] == "cpu":
        if _fast_bf16_cpu():
            return None
        return (
            "warning: this processor has no units for bf16 (AVX512-BF16, AMX) and imitates it, "
            "many times slower than fp32; leave --precision bf16 out, or use a GPU"
        )
    if all(map(_fast_bf16_gpu, devices)):
        return None
    return (
        "warning: this GPU has no units for bf16 and imitates it; --precision fp16 is as small and "
        f"many times faster {_DECIDE}"
    )


def precision_hint(
    models: Sequence[ModelRef], precisions: Sequence[Precision], devices: Sequence[str]
) -> str | None:
    """Return what a lower precision would bring large models at fp32 on this machine, or None.

    The figures are those of docs/speed.md: BLIP on an H200, and on a processor with AMX.
    """
    if "fp32" not in precisions or max(map(weight_bytes, models), default=0) < _LARGE_MODEL_BYTES:
        return None
    if devices[0] == "cpu":
        if not _fast_bf16_cpu():
            return None
        return f"hint: --precision bf16 makes models about 3.5 times as fast on this CPU {_DECIDE}"
    if not all(map(_fast_bf16_gpu, devices)):
        return f"hint: --precision fp16 makes models several times as fast on this GPU {_DECIDE}"
    return (
        "hint: on a GPU with tensor cores --precision bf16 makes models about ten times as fast, "
        f"tf32 about three times, at nearly fp32's accuracy {_DECIDE}"
    )


def _fast_bf16_cpu() -> bool:
    from capfilt.models.compute.packed_linear import fast_bf16_cpu

    return fast_bf16_cpu()


def _fast_bf16_gpu(device: str) -> bool:
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
