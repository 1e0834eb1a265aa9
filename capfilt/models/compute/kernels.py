"""Triton kernels for what would wait for a GPU's memory, one small operation after the other.

Each computes in fp32 what the operations of torch that it stands for compute, and rounds where they
round. A program has a row (or a head of a row) of its own, so neighbours change nothing. Only
imported where there is a GPU: torch's builds for GPUs bring Triton along.
"""

from typing import Final

import torch
import triton
import triton.language as tl

_WARPS: Final = 4


def add_norm(
    update: torch.Tensor, x: torch.Tensor, norm: torch.nn.LayerNorm, keep: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x + update, its layer norm), both of x's shape; the sum is `update`, in place.

    keep: whether the sum is wanted; else `update` is left as it is.
    """
    width = x.shape[-1]
    normed = torch.empty_like(update)
    block = triton.next_power_of_2(width)
    _add_norm[(x.numel() // width,)](
        update, x, norm.weight, norm.bias, normed, width, norm.eps, keep, block, num_warps=_WARPS
    )
    return update, normed


def attend_one(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attend one query (R, heads, 1, d) to keys and values (R, heads, T, d).

    mask: (R, 1, 1, T), True where a key may be looked at. Returns (R, heads, 1, d).
    """
    rows, heads, count, size = keys.shape
    out = torch.empty((rows, heads, 1, size), dtype=q.dtype, device=q.device)
    q, seen = q.contiguous(), mask.contiguous()
    blocks = triton.next_power_of_2(count), triton.next_power_of_2(size)
    _attend_one[(rows * heads,)](
        q, keys, values, seen, out, heads, count, size, size**-0.5, *blocks, num_warps=1
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]  # as Triton ships it
def _add_norm(update, x, weight, bias, normed, width, eps, keep: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]  # a kernel
    start = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, block)
    inside = place < width
    kind = update.dtype.element_ty
    total = tl.load(update + start + place, inside, 0.0).to(tl.float32)
    total += tl.load(x + start + place, inside, 0.0).to(tl.float32)
    total = total.to(kind)
    if keep:
        tl.store(update + start + place, total, inside)
    total = total.to(tl.float32)
    mean = tl.sum(total, 0) / width
    far = tl.where(inside, total - mean, 0.0)
    scale = tl.rsqrt(tl.sum(far * far, 0) / width + eps)
    weights = tl.load(weight + place, inside, 0.0).to(tl.float32)
    biases = tl.load(bias + place, inside, 0.0).to(tl.float32)
    tl.store(normed + start + place, (far * scale * weights + biases).to(kind), inside)


@triton.jit  # type: ignore[untyped-decorator]  # as Triton ships it
def _attend_one(  # type: ignore[no-untyped-def]  # a kernel
    q, keys, values, seen, out, heads, count, size, scale, many: tl.constexpr, wide: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    key, place = tl.arange(0, many), tl.arange(0, wide)
    here, inside = key < count, place < size
    both = here[:, None] & inside[None, :]
    at = program * count * size + key[:, None] * size + place[None, :]
    query = tl.load(q + program * size + place, inside, 0.0).to(tl.float32) * scale
    scores = tl.sum(tl.load(keys + at, both, 0.0).to(tl.float32) * query[None, :], 1)
    looked = tl.load(seen + program // heads * count + key, here, 0) != 0
    scores = tl.where(looked, scores, -float("inf"))
    shares = tl.exp(scores - tl.max(scores, 0))
    shares = shares / tl.sum(shares, 0)
    found = tl.sum(tl.load(values + at, both, 0.0).to(tl.float32) * shares[:, None], 0)
    tl.store(out + program * size + place, found.to(out.dtype.element_ty), inside)
