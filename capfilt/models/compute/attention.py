"""Attention of few queries: which kernel does it, on which device.

For fewer than four queries cuDNN splits the keys among blocks whose sums meet in any order: on an
H200 (torch 2.11, bf16) one query's result differed from run to run, those of four never.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from capfilt.models.compute.fused import kernels

_FEWEST_QUERIES: Final = 4


@contextlib.contextmanager
def steady_attention() -> Iterator[None]:
    """Keep cuDNN out of what transformers' own classes do with one query at a time."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # as shipped
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend (B, heads, L, d) to keys and values (B, heads, N, d), with queries enough on a GPU.

    mask: (B, 1, 1, N), True where a key may be looked at; None: all may.
    """
    count = q.shape[2]
    if q.device.type == "cpu" or count >= _FEWEST_QUERIES:
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    filled = pad(q, (0, 0, 0, _FEWEST_QUERIES - count))
    return scaled_dot_product_attention(filled, keys, values, attn_mask=mask)[:, :, :count]


def attend_self(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attend one query a row (R, heads, 1, d) to its own few keys; mask (R, 1, 1, T).

    On a GPU a small kernel of our own does it. Without Triton two thin products take 40 us where
    the fused kernels, made for long queries, take 63 and 91 (544 rows, 12 heads, 20 keys, H200).
    """
    if q.device.type == "cpu":
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    if (own := kernels(q.device)) is not None:
        found: torch.Tensor = own.attend_one(q, keys, values, mask)
        return found
    scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(-1, -2)).float()
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    return torch.matmul(weights.to(values.dtype), values)


def attend_image(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attend K queries an image (slots, heads, K, d) to its keys and values.

    On a CPU a few queries against hundreds of keys are two thin products; torch's fused kernel is
    made for many queries, and is slower from two on.
    """
    if q.device.type != "cpu" or q.shape[2] == 1:
        return attend(q, keys, values)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(-1, -2))
    return torch.matmul(torch.softmax(scores, dim=-1), values)
