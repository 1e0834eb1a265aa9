"""Sums, norms and activations joined with their neighbours, where a GPU would wait for its memory.

On an H100 the sums, norms and GELUs of BLIP-large's image tower took a quarter of its time; joined
they take a tenth. CAPFILT_TRITON=0 leaves them as torch has them, and so does a machine on which
Triton finds no C compiler; last bits differ between the two, and it is said.
"""

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import Any, Final

import torch
from transformers.activations import GELUActivation

from capfilt.models.compute.packed_linear import Dense

SWITCH: Final = "CAPFILT_TRITON"
_log: Final = logging.getLogger(__name__)


def add_norm(
    update: torch.Tensor, x: torch.Tensor, norm: torch.nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x + update, its layer norm), both (..., D); `update` is given up."""
    if (own := kernels(x.device)) is None:
        total = update.add_(x)
        return total, norm(total)
    found: tuple[torch.Tensor, torch.Tensor]
    found = own.add_norm(update.contiguous(), x.contiguous(), norm, keep=True)
    return found


def added_norm(update: torch.Tensor, x: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """Return the layer norm of x + update, (..., D); `update` is given up."""
    if (own := kernels(x.device)) is None:
        normed: torch.Tensor = norm(update.add_(x))
        return normed
    normed = own.add_norm(update.contiguous(), x.contiguous(), norm, keep=False)[1]
    return normed


class Activated:
    """A linear layer and its activation.

    On a GPU at bf16 and fp16 GELU is computed within the product. There it is the tanh form, which
    differs from the exact one by 5e-4 at most: less than these types round by at 1.
    """

    __slots__ = ("_act", "_dense", "_gelu")

    def __init__(self, dense: Dense, act: Any) -> None:  # transformers' activations are untyped
        self._dense, self._act = dense, act
        self._gelu = isinstance(act, GELUActivation)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        if self._gelu and x.dtype != torch.float32 and kernels(x.device) is not None:
            return self._dense.gelu(x)
        activated: torch.Tensor = self._act(self._dense(x))
        return activated


def kernels(device: torch.device) -> ModuleType | None:
    """Return our kernels for a device, None where torch's own operations do it."""
    return _kernels() if device.type == "cuda" and os.environ.get(SWITCH) != "0" else None


@functools.cache
def _kernels() -> ModuleType | None:
    """Import the kernels, and try one."""
    try:
        own = importlib.import_module("capfilt.models.compute.kernels")
        row = torch.ones((1, 8), device="cuda")
        own.add_norm(row, row.clone(), torch.nn.LayerNorm(8, device="cuda"), keep=True)
    except Exception as error:  # noqa: BLE001  # Triton's and the compiler's errors are of any kind
        _log.warning("Triton's kernels are off, torch's own take longer: %s", error)
        return None
    return own
