"""The forward passes of training, on the modules of transformers' BLIP.

The arithmetic is that of transformers' own classes (tests compare every output), with fused
attention where that is faster, and with one liberty: what an image costs in cross-attention, its
keys and values, is computed once an image and layer, however many texts look at it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


class ImagesOfTexts(NamedTuple):
    """What texts look at: image states (B, N, D), and which of them each text has.

    `rows` (R,) is the image of each of R texts. Without it, R is a multiple K of B and the texts
    of an image stand side by side: then its K texts are queries of one attention, and not even
    keys and values are copied.
    """

    states: torch.Tensor
    rows: torch.Tensor | None = None


def vision_states(model: Any, pixels: torch.Tensor, recompute: bool = False) -> torch.Tensor:
    """Run a `BlipVisionModel`: (B, 3, side, side) to (B, N, D), the class token first.

    `recompute` trades time for memory: a layer's insides are computed again on the way back.
    """
    x = model.embeddings(pixels)
    for layer in model.encoder.layers:
        x = _run(recompute, _vision_layer, layer, x)
    states: torch.Tensor = model.post_layernorm(x)
    return states


def text_states(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    looking: ImagesOfTexts | None,
    recompute: bool = False,
) -> torch.Tensor:
    """Run a `BlipTextModel`: ids (R, L) to states (R, L, D).

    With a mask (R, L), True at tokens, every token sees all others; without, those before it.
    `looking` None leaves the cross-attention out.
    """
    x = model.embeddings(ids)
    seen = None if mask is None else mask.bool()[:, None, None]
    for layer in model.encoder.layer:
        x = _run(recompute, _text_layer, layer, x, seen, looking)
    states: torch.Tensor = x
    return states


def _vision_layer(layer: Any, x: torch.Tensor) -> torch.Tensor:
    attention = layer.self_attn
    batch, count, _ = x.shape
    packed = attention.qkv(layer.layer_norm1(x)).view(batch, count, 3, attention.num_heads, -1)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    mixed = _attended(q, k, v, _rate(attention))
    x = x + attention.projection(_merged(mixed))
    out: torch.Tensor = x + layer.mlp(layer.layer_norm2(x))
    return out


def _text_layer(
    layer: Any, x: torch.Tensor, seen: torch.Tensor | None, looking: ImagesOfTexts | None
) -> torch.Tensor:
    own = layer.attention.self
    q, k, v = (_split(each(x), own) for each in (own.query, own.key, own.value))
    mixed = _attended(q, k, v, _rate(own), seen, causal=seen is None)
    x = layer.attention.output(_merged(mixed), x)
    if looking is not None:
        x = layer.crossattention.output(_looked(layer.crossattention.self, x, looking), x)
    out: torch.Tensor = layer.feed_forward_chunk(x)
    return out


def _looked(cross: Any, x: torch.Tensor, looking: ImagesOfTexts) -> torch.Tensor:
    """Return what texts x (R, L, D) gather from their images, (R, L, D)."""
    states, rows = looking
    keys, values = _split(cross.key(states), cross), _split(cross.value(states), cross)
    if rows is not None:
        keys, values = keys[rows], values[rows]
    folded = x.reshape(len(keys), -1, x.shape[-1])  # the texts of an image: one long query
    mixed = _attended(_split(cross.query(folded), cross), keys, values, _rate(cross))
    return _merged(mixed).view(x.shape)


def _attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout: float,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Return softmax(q kᵀ / √size) v of (B, heads, L, head size)."""
    with torch.autocast(q.device.type, enabled=False):
        if q.device.type == "cpu" and q.dtype != torch.float32:
            return _written_out(q, k, v, dropout, mask, causal=causal)
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )


def _written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout: float,
    mask: torch.Tensor | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """Attend by plain products: torch's fused backward for CPUs is many times slower at bf16.

    It holds the (L, L) weights of every layer for the way back; `recompute` does not.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.dropout(scores.softmax(dim=-1), dropout, train=dropout > 0) @ v


def _split(x: torch.Tensor, attention: Any) -> torch.Tensor:
    """Turn (B, L, D) into (B, heads, L, head size)."""
    return x.view(*x.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)


def _merged(heads: torch.Tensor) -> torch.Tensor:
    """Turn (B, heads, L, head size) into (B, L, D)."""
    return heads.transpose(1, 2).flatten(2)


def _rate(attention: Any) -> float:
    return float(attention.dropout.p) if attention.training else 0.0


def _run(recompute: bool, layer: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
    if not (recompute and torch.is_grad_enabled()):
        return layer(*arguments)
    out: torch.Tensor = checkpoint(layer, *arguments, use_reentrant=False)
    return out
