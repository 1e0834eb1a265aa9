"""BLIP's text tower on the weights of transformers' class (arXiv 2201.12086, section 3.1).

What an image costs here is paid once an image and layer: its cross-attention keys and values.
Whoever has texts for it (captions being written, candidates being scored) brings queries.
"""

from collections.abc import Callable
from typing import Any

import torch

from capfilt.models.compute.attention import attend
from capfilt.models.compute.fused import Activated, added_norm
from capfilt.models.compute.packed_linear import Dense

# Takes queries of a layer, returns what they gather from the images, of the same shape.
Cross = Callable[[torch.Tensor], torch.Tensor]


class TextLayer:
    """Self-attention, cross-attention and feed-forward of one layer, each with its residual."""

    def __init__(self, layer: Any) -> None:  # transformers' models are untyped
        own, cross = layer.attention, layer.crossattention
        self.heads: int = own.self.num_attention_heads
        self.head_size: int = own.self.query.out_features // self.heads
        self._qkv = Dense.of(own.self.query, own.self.key, own.self.value)
        self._out, self._out_norm = Dense.of(own.output.dense), own.output.LayerNorm
        self._query = Dense.of(cross.self.query)
        self._cross_kv = Dense.of(cross.self.key, cross.self.value)
        self._cross_out, self._cross_norm = Dense.of(cross.output.dense), cross.output.LayerNorm
        up = layer.intermediate
        self._up = Activated(Dense.of(up.dense), up.intermediate_act_fn)
        self._down, self._norm = Dense.of(layer.output.dense), layer.output.LayerNorm

    def image_keys(self, states: torch.Tensor) -> torch.Tensor:
        """Project image states (B, N, D) to keys and values (B, N, 2, heads, head size)."""
        batch, count, _ = states.shape
        return self._cross_kv(states).view(batch, count, 2, self.heads, -1)

    def key_buffer(self, like: torch.Tensor, images: int, count: int) -> torch.Tensor:
        """Return room for what `image_keys` gives of images of `count` states.

        It lies in memory as whoever reads it likes it: a CPU's products want a head's keys side by
        side, a GPU's kernels read them as they are projected, and so nothing is turned round.
        """
        if like.device.type == "cpu":
            split = like.new_zeros(2, images, self.heads, count, self.head_size)
            return split.permute(1, 3, 0, 2, 4)
        return like.new_zeros(images, count, 2, self.heads, self.head_size)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values of self-attention, (B, heads, L, head size) each."""
        batch, count, _ = x.shape
        q, k, v = self._qkv(x).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def after_self(self, x: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        """Close self-attention: x (B, L, D), gathered (B, heads, L, head size)."""
        return added_norm(self._out(_merged(gathered)), x, self._out_norm)

    def cross_queries(self, x: torch.Tensor) -> torch.Tensor:
        """Return queries of cross-attention, (B, heads, L, head size)."""
        batch, count, _ = x.shape
        return self._query(x).view(batch, count, self.heads, -1).transpose(1, 2)

    def after_cross(self, x: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        """Close cross-attention: x (B, L, D), gathered (B, heads, L, head size)."""
        return added_norm(self._cross_out(_merged(gathered)), x, self._cross_norm)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, (B, L, D)."""
        return added_norm(self._down(self._up(x)), x, self._norm)


class TextTower:
    """Embeddings and layers of a `transformers.BlipTextModel`."""

    def __init__(self, model: Any) -> None:  # transformers' models are untyped
        embeddings = model.embeddings
        self._words, self._positions = embeddings.word_embeddings, embeddings.position_embeddings
        self._norm = embeddings.LayerNorm
        self.layers = [TextLayer(layer) for layer in model.encoder.layer]

    def embed(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (B, L, D) for ids (B, L) at `positions`, of a shape that broadcasts to it."""
        embedded: torch.Tensor = self._norm(self._words(ids) + self._positions(positions))
        return embedded

    def begin(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (B, L, D) for ids (B, L) that stand at 0, 1, 2, …"""
        return self.embed(ids, torch.arange(ids.shape[1], device=ids.device))

    def bidirectional(
        self, number: int, x: torch.Tensor, mask: torch.Tensor, cross: Cross | None
    ) -> torch.Tensor:
        """Run layer `number` over whole texts x (B, L, D); mask (B, 1, 1, L) is True at tokens.

        Of the last layer only position 0 is anybody's business, so (B, 1, D) comes back there.
        """
        layer = self.layers[number]
        q, k, v = layer.project(x)
        if number == len(self.layers) - 1:
            q, x = q[:, :, :1], x[:, :1]
        x = layer.after_self(x, attend(q, k, v, mask))
        if cross is not None:
            x = layer.after_cross(x, cross(layer.cross_queries(x)))
        return layer.feed_forward(x)


def keys_and_values(both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split (B, N, 2, heads, head size) into keys and values, (B, heads, N, head size) each."""
    keys, values = both.permute(2, 0, 3, 1, 4)
    return keys, values


def _merged(heads: torch.Tensor) -> torch.Tensor:
    """Turn (B, heads, L, head size) into (B, L, heads * head size)."""
    return heads.transpose(1, 2).flatten(2)
