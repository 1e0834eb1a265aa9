"""A GPU that computes nothing: our CUDA branches run on fake tensors anywhere, and are counted.

A fake tensor knows its device, shape and type, and has no numbers. torch refuses to mix devices
among them as it does among real ones, so what runs through here has each tensor where it must be.
What the host would have read is answered by zeros, False and 0.5; a look at which captions have
ended says "all of them" at every `ends_after`-th time.
"""

import contextlib
import ctypes
import linecache
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE: Final = "cuda:0"
_CUDA, _META = 1, 14  # c10::DeviceType
_GUARDS: Final = "_ZN3c104impl26device_guard_impl_registryE"
_aten: Final = torch.ops.aten
# One kernel on a GPU, and on a CPU build of torch a dozen.
_WHOLE: Final = {_aten.scaled_dot_product_attention.default}
_COPIES: Final = {_aten._to_copy.default, _aten.copy_.default}


@dataclass(slots=True)
class Counts:
    """What was asked of the device.

    kernels: operations that run there; views and allocations are none.
    reads: the host stands still until the device has done all that it was given.
    waits: the host waits for an event, behind which the device has more to do.
    uploads: copies to the device that hold nobody: from pinned memory, non-blocking.
    blocking: copies to the device that hold the host.
    where: the lines of capfilt that read, or copied so.
    """

    kernels: int = 0
    reads: int = 0
    waits: int = 0
    uploads: int = 0
    blocking: int = 0
    where: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, int]:
        """Return the numbers."""
        return {name: value for name, value in asdict(self).items() if name != "where"}

    def less(self, other: "Counts") -> "Counts":
        """Return what is here beyond another's."""
        mine, its = self.plain(), other.plain()
        rest = {name: mine[name] - its[name] for name in mine}
        return Counts(**rest, where=self.where - other.where)


class FakeCuda:
    """The fake device while it is there; see `fake_cuda`."""

    def __init__(self, ends_after: int) -> None:
        self.counts = Counts()
        self._ends_after, self._looks = ends_after, 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counts]:
        """Yield the counts of what runs inside."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = before

    def read(self, tensor: torch.Tensor) -> Any:  # nested lists, as `tolist` has them
        """Return what a host tensor would hold; of flags it is whether captions have ended."""
        if tensor.dtype != torch.bool:
            return self.filled(tensor).tolist()
        self._looks += 1
        return np.full(tuple(tensor.shape), self._looks % self._ends_after == 0).tolist()

    def filled(self, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
        """Return an array of a tensor's shape and type; floats are 0.5, which is no extreme."""
        name = str(tensor.dtype).removeprefix("torch.").replace("bfloat16", "float32")
        return np.full(tuple(tensor.shape), 0.5 if tensor.is_floating_point() else 0, name)

    def noted(self, what: str) -> None:
        """Remember which line of capfilt stops the host."""
        for frame, line in traceback.walk_stack(None):
            file = frame.f_code.co_filename
            if "/capfilt/" in file and "/tests/" not in file:
                place = f"{'/'.join(Path(file).parts[-2:])}:{line}"
                said = linecache.getline(file, line).strip()
                self.counts.where[f"{what} at {place}: {said}"] += 1
                return
        self.counts.where[f"{what} outside capfilt"] += 1


@contextlib.contextmanager
def fake_cuda(ends_after: int) -> Iterator[FakeCuda]:
    """Have a device `cuda:0` whose tensors are fake; CUDA graphs are off."""
    cuda = FakeCuda(ends_after)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict("os.environ", {"CAPFILT_CUDA_GRAPHS": "0"}))
        for name, stand_in in _streams(cuda).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        for owner, method, stand_in in (
            (FakeTensor, "tolist", lambda tensor: cuda.read(tensor.cpu())),
            (torch.Tensor, "backward", _backward),
            (torch.Tensor, "record_stream", lambda *_: None),
            (torch.nn.Module, "_apply", _converted),
        ):
            stack.enter_context(mock.patch.object(owner, method, stand_in))
        stack.enter_context(_device_guard())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Counting(cuda))
        stack.enter_context(_Answers(cuda))
        yield cuda


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as torch ships it
    """Counts what reaches the device, and answers what the host would read of it."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as torch ships it
        self._cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's own protocol
        given = kwargs or {}
        if func not in _WHOLE and func.namespace == "aten":
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        if func is _aten._local_scalar_dense.default:
            return self._scalar(args[0])
        if func is _aten.nonzero.default:
            return self._places(args[0])
        if func is _aten.index.Tensor:
            args = (args[0], self._unmasked(args[1]))
        out = func(*args, **given)
        self._note(func, args, given, out)
        return out

    def _scalar(self, tensor: torch.Tensor) -> object:
        if _on_gpu(tensor):
            self._cuda.counts.reads += 1
            self._cuda.noted("read")
        return self._cuda.filled(tensor).item()

    def _places(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the places of a mask that is True everywhere; a GPU's number of them is read."""
        if _on_gpu(mask):
            self._cuda.counts.reads += 1
            self._cuda.counts.kernels += 1
            self._cuda.noted("size of what a mask leaves")
        return mask.new_empty((mask.numel(), mask.dim()), dtype=torch.long)

    def _unmasked(self, places: Any) -> list[torch.Tensor | None]:
        """Return an index without masks."""
        found: list[torch.Tensor | None] = []
        for place in places:
            masks = place is not None and place.dtype == torch.bool
            found += self._places(place).unbind(1) if masks else [place]
        return found

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if not any(map(_on_gpu, (*inputs, *outputs))):
            return
        if not any(x.numel() for x in outputs):
            return
        if func in _COPIES and len({x.device.type for x in (*inputs, *outputs)}) > 1:
            self._note_copy(inputs, outputs[0], kwargs.get("non_blocking", args[-1] is True))
        elif not _is_allocation(func) and not _is_view(func, inputs, outputs):
            self._cuda.counts.kernels += 1

    def _note_copy(self, inputs: list[torch.Tensor], out: torch.Tensor, aside: bool) -> None:
        counts, source = self._cuda.counts, inputs[-1]
        host = source if _on_gpu(out) else out
        held = not (aside and getattr(host, "is_pinned_here", False))
        if not _on_gpu(out):
            counts.reads += held
        elif held:
            counts.blocking += 1
        else:
            counts.uploads += 1
        if held:
            self._cuda.noted("copy to the device" if _on_gpu(out) else "read")


class _Answers(TorchFunctionMode):
    """What fake tensors cannot do: values for the host, and pinned memory."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's own protocol
        given = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            return _pinned(args[0].clone())
        if func is torch.empty and given.pop("pin_memory", False):
            return _pinned(func(*args, **given))
        if func is torch.Tensor.__deepcopy__:  # torch would copy memory that is not there
            made = args[1].setdefault(id(args[0]), args[0].detach().clone())
            return made.requires_grad_(args[0].requires_grad)
        if func is torch.Tensor.numpy and isinstance(args[0], FakeTensor):
            return self._cuda.filled(args[0])
        return func(*args, **given)


def _streams(cuda: FakeCuda) -> Mapping[str, Callable[..., object]]:
    """Return what stands in for streams and events of `torch.cuda`."""

    class Stream:
        def __init__(self, device: object = None) -> None:
            self.device = device

        def wait_stream(self, other: "Stream") -> None:
            """Wait on the device, which costs the host nothing."""

    class Event:
        def record(self) -> None:
            """Mark a place in the stream."""

        def synchronize(self) -> None:
            cuda.counts.waits += 1

    return {
        "Stream": Stream,
        "Event": Event,
        "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
    }


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """Give a CPU build of torch the guard of CUDA devices that autograd and indexing ask for.

    A guard says which device is the current one. That of meta tensors does nothing, which is what a
    fake device wants; on a build for CUDA it takes the place of its own.
    """
    [library] = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(ctypes.CDLL(str(library)), _GUARDS)
    before = guards[_CUDA]
    guards[_CUDA] = guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


def _backward(loss: torch.Tensor) -> None:
    """Give each parameter that a loss depends on a gradient; autograd itself needs a real GPU."""
    seen, left = set(), [loss.grad_fn]
    while left:
        node: Any = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaf.grad = torch.zeros_like(leaf)
        left += [following for following, _ in node.next_functions]


def _converted(module: torch.nn.Module, convert: Callable[..., torch.Tensor]) -> torch.nn.Module:
    """Convert a model as `Module.to` does; torch would swap fake tensors, and may not."""
    made: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for own in module.modules():
        for name, weight in own._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    fresh = torch.nn.Parameter(convert(weight.detach()), weight.requires_grad)
                    made[id(weight)] = fresh
                own._parameters[name] = made[id(weight)]
        for name, held in own._buffers.items():
            own._buffers[name] = None if held is None else convert(held)
    return module


def _pinned(tensor: Any) -> torch.Tensor:
    tensor.is_pinned_here = True
    found: torch.Tensor = tensor
    return found


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


def _is_allocation(func: Any) -> bool:
    return "empty" in func.name()


def _is_view(func: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> bool:
    """Say whether an operation only looks at its inputs' memory in another way."""
    if func._schema.is_mutable or not outputs:
        return not outputs
    held = {x.untyped_storage()._cdata for x in inputs}
    return all(x.untyped_storage()._cdata in held for x in outputs)
