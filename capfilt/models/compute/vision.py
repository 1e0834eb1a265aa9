"""BLIP's image tower (a ViT, arXiv 2010.11929) on the weights of transformers' class."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from capfilt.models.compute.fused import Activated, add_norm
from capfilt.models.compute.packed_linear import Dense


class VisionTower:
    """Pixels (B, 3, side, side) to states (B, N, D): the class token, then the patches.

    The same arithmetic as `transformers.BlipVisionModel`, with fused attention and packed weights.
    """

    def __init__(self, model: Any) -> None:  # transformers' models are untyped
        embeddings = model.embeddings
        self._patch = embeddings.patch_embedding
        weight = self._patch.weight
        # Patches do not overlap, so the convolution is one matrix product.
        self._patches = Dense(weight.flatten(1), self._patch.bias)
        self._size: int = weight.shape[-1]
        positions = embeddings.position_embedding
        self._class = (embeddings.class_embedding + positions[:, :1]).to(weight.dtype)
        self._positions = positions[:, 1:].to(weight.dtype)
        self._layers = [_Layer(layer) for layer in model.encoder.layers]
        self._norm = model.post_layernorm
        self.tokens: int = positions.shape[1]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last states, normalised, (B, N, D)."""
        patches = self._patches(self._cut(pixels)) + self._positions
        x = torch.cat([self._class.expand(len(pixels), 1, -1), patches], dim=1)
        normed: torch.Tensor = self._layers[0].norm1(x)
        after = [*(layer.norm1 for layer in self._layers[1:]), self._norm]
        for layer, norm in zip(self._layers, after, strict=True):
            x, normed = layer(x, normed, norm)
        return normed

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return patches (B, N - 1, 3 * size * size), laid out as the convolution's kernel is."""
        batch, channels, side, _ = pixels.shape
        grid = side // self._size
        cut = pixels.view(batch, channels, grid, self._size, grid, self._size)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1)


class _Layer:
    def __init__(self, layer: Any) -> None:  # transformers' models are untyped
        attention, mlp = layer.self_attn, layer.mlp
        self._heads: int = attention.num_heads
        self._qkv, self._out = Dense.of(attention.qkv), Dense.of(attention.projection)
        self._up, self._down = Activated(Dense.of(mlp.fc1), mlp.activation_fn), Dense.of(mlp.fc2)
        self.norm1, self._norm2 = layer.layer_norm1, layer.layer_norm2

    def __call__(
        self, x: torch.Tensor, normed: torch.Tensor, after: torch.nn.LayerNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (states, those states normed by `after`) for (states, those normed by `norm1`)."""
        batch, count, width = x.shape
        qkv = self._qkv(normed).view(batch, count, 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        x, normed = add_norm(self._out(mixed), x, self._norm2)
        return add_norm(self._down(self._up(normed)), x, after)
