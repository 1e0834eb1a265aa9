"""Between host and device: copies that keep neither of them waiting.

A copy from pageable memory holds the host until everything before it has run on the device, and
one on the stream of the kernels holds the kernels. So what goes to a GPU is pinned first, pictures
travel on a stream of their own while the tile before them is computed, and what comes back is
waited for one step late. On a CPU all of this is nothing.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from capfilt.models.compute.tiles import tiles
from capfilt.models.protocols import Pixels


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor of the host on the device; to a GPU it travels without waiting."""
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def indices(numbers: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """Return places (n,) int64 on the device."""
    return to_device(torch.tensor(list(numbers), dtype=torch.int64), device)


class PixelUpload:
    """Tiles of pictures on their way to a device, in order, the next one sent ahead.

    `take` gives (B, side, side, 3) bytes on the device and how many of them are real; `prepare`
    sends the tile after it, and is called when the device has been given its work.
    """

    def __init__(self, images: Sequence[Pixels], size: int, device: str) -> None:
        self._tiles: Iterator[tuple[list[Pixels], int]] = tiles(images, size)
        self._device, self._stream = device, upload_stream(device)
        self._ahead: tuple[torch.Tensor, int] | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield all tiles; each next one is sent when its turn before has been computed with."""
        while (taken := self.take()) is not None:
            yield taken
            self.prepare()

    def take(self) -> tuple[torch.Tensor, int] | None:
        """Return the next tile, to be used on the current stream; None when there is none."""
        self.prepare()
        taken, self._ahead = self._ahead, None
        if taken is not None and self._stream is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            taken[0].record_stream(here)
        return taken

    def prepare(self) -> None:
        """Begin to send the next tile, unless that has begun."""
        if self._ahead is None and (tile := next(self._tiles, None)) is not None:
            self._ahead = self._sent(tile[0]), tile[1]

    def _sent(self, images: Sequence[Pixels]) -> torch.Tensor:
        if self._stream is None:
            return torch.from_numpy(np.stack(images)).to(self._device)
        stacked = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=stacked.numpy())
        with torch.cuda.stream(self._stream):
            return stacked.to(self._device, non_blocking=True)


def upload_stream(device: str) -> torch.cuda.Stream | None:
    """Return a stream for copies to a GPU; None on a CPU."""
    kind = torch.device(device)
    if kind.type != "cuda":
        return None
    return torch.cuda.Stream(kind)  # type: ignore[no-untyped-call]  # as torch ships it


class Readback:
    """A small tensor of the device, read by the host without stopping the device.

    `send` begins the copy of what the tensor is at that point of the stream; `read` waits for that
    copy alone, not for what has been given to the device since.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._on_gpu = tensor.device.type == "cuda"
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._on_gpu)
        self._arrived = _event() if self._on_gpu else None

    def send(self, tensor: torch.Tensor) -> None:
        """Begin to copy."""
        self._host.copy_(tensor, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[bool]:
        """Return the values of the last `send`."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[bool] = self._host.tolist()
        return values


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # as torch ships it
