"""CUDA graphs: a step of fixed shapes, recorded once and launched as one piece.

A decoding step is some hundred small kernels. Launching them one by one takes the host longer than
the device needs to run them; a graph launches all of them at once, and computes the same.
"""

import logging
import os
from collections.abc import Callable
from typing import Final

import torch

SWITCH: Final = "CAPFILT_CUDA_GRAPHS"
_WARM_UP: Final = 3  # libraries choose kernels and take their workspaces before recording
_log: Final = logging.getLogger(__name__)


def replayed(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return `step`, recorded as a CUDA graph where the device has them.

    `step` reads and writes tensors that stay where they are, allocates nothing that outlives it,
    and asks the device nothing. It is run a few times here, so what it does must do no harm yet.
    CAPFILT_CUDA_GRAPHS=0 leaves it as it is; so does a driver that cannot record.
    """
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return step
    try:
        return _recorded(step, device).replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _log.warning("CUDA graphs are off, decoding steps are launched one by one: %s", error)
        return step


def _recorded(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as torch ships it
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        step()
    return graph
