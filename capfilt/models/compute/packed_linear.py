"""Linear layers for inference, with weights laid out as the processor's matrix units want them."""

from collections.abc import Sequence
from typing import Final, Self

import torch
from torch import nn
from torch.nn.functional import linear, pad

_ALIGNED: Final = 8  # outputs


class Dense:
    """y = x W^T + b, for any leading shape of x.

    In bf16 on a CPU, oneDNN reorders a weight anew at every call. For the few rows of a decoding
    step that costs more than the product, so the weight is reordered once, here.
    """

    __slots__ = ("_bias", "_packed", "_weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._bias = bias
        self._packed = _packs(weight)
        # The ordinary layout is not needed beside the packed one.
        self._weight = _pack(weight) if self._packed else weight

    @classmethod
    def padded(cls, layer: nn.Linear) -> Self:
        """Return a layer whose outputs are filled up, on a GPU, to a number that suits its units.

        There an odd vocabulary (30524) takes three times as long as the next multiple of 8.
        """
        missing = -layer.out_features % _ALIGNED
        if layer.weight.device.type == "cpu" or not missing:
            return cls(layer.weight, layer.bias)
        bias = None if layer.bias is None else pad(layer.bias, (0, missing))
        return cls(pad(layer.weight, (0, 0, 0, missing)), bias)

    @classmethod
    def of(cls, *layers: nn.Linear) -> Self:
        """Return one layer that computes several of the same input, outputs side by side."""
        if len(layers) == 1:
            return cls(layers[0].weight, layers[0].bias)
        return cls(_joined([x.weight for x in layers]), _joined([x.bias for x in layers]))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        if not self._packed:
            return linear(x, self._weight, self._bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU (its tanh form) of the layer's output, in one product; on a GPU."""
        rows: torch.Tensor = torch.ops.aten._addmm_activation(
            self._bias, x.flatten(0, -2), self._weight.t(), use_gelu=True
        )
        return rows.view(*x.shape[:-1], -1)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)).contiguous()


def _packs(weight: torch.Tensor) -> bool:
    """Say whether this torch, this processor and this weight can do with a packed layout."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and fast_bf16_cpu()
    )


def fast_bf16_cpu() -> bool:
    """Say whether the processor multiplies bf16 matrices itself (AVX512-BF16, AMX)."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported is not None and supported())


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed
