"""Loading checkpoints, and refusing those that would only seem to work.

transformers fills missing weights with random numbers and warns. A filter loaded from a captioning
checkpoint would then score at random, silently, for days; so any missing or unexpected weight is
an error here.
"""

import contextlib
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from capfilt.errors import ModelError
from capfilt.models.checkpoints.adapters import is_adapter
from capfilt.models.checkpoints.weights import adapter_file, read_tensors, weights_of
from capfilt.models.families import ModelKind
from capfilt.models.preprocessing import preprocessing_of
from capfilt.models.recipe import ModelRef, Precision
from capfilt.models.vocabulary import check_vocabulary

# Buffers that older releases stored with the weights; they hold 0, 1, 2, … and nothing learnt.
_KNOWN_EXTRA: Final = re.compile(r"(^|\.)position_ids$")
# The part of an adapter's tensor name that follows the module's.
_ADAPTED: Final = re.compile(r"\.(lora|hada|lokr|ia3)_.*$")
_DTYPES: Final = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # in memory; products are rounded, see `tiles.fixed_compute`
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_UNREADABLE: Final = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, ImportError),
    *(pickle.UnpicklingError, SafetensorError),
)


def load_checkpoint(
    model_class: type[PreTrainedModel], ref: ModelRef, device: str, precision: Precision
) -> Any:  # transformers' models are untyped
    """Load a checkpoint for inference.

    Raises:
        ModelError: weights are missing, unexpected or of other shapes, or files are unreadable.
    """
    transformers_logging.disable_progress_bar()  # a bar a worker for half a second of loading
    try:
        weights = weights_of(Path(ref.path))
        with _without_adapter(Path(ref.path)) as folder:
            model, info = model_class.from_pretrained(
                folder,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
                dtype=_read_as(ref, precision),
                use_safetensors=weights.safe,
                weights_only=True,  # a pickle that needs more could run code
            )
    except _UNREADABLE as error:
        raise ModelError(
            f"{ref.name!r} cannot be loaded from {ref.path}: {_one_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"])
    unexpected = sorted(k for k in info["unexpected_keys"] if not _KNOWN_EXTRA.search(k))
    mismatched = sorted(str(k) for k in info["mismatched_keys"])
    if missing or unexpected or mismatched:
        raise ModelError(
            f"{ref.name!r} does not fit {model_class.__name__}: "
            f"{_told('missing', missing)}, {_told('unexpected', unexpected)}, "
            f"{_told('of another shape', mismatched)}. What is missing would be random numbers; "
            "give a checkpoint of the right kind"
        )
    if ref.adapter is not None:
        model = _merged(model, ref, ref.adapter)
    try:
        model = model.to(device=device, dtype=_DTYPES[precision]).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{ref.name!r} does not fit into the memory of {device}; take a smaller model, "
            "--precision bf16, fewer --workers or another device"
        ) from error
    _check_numbers(model, ref)
    return model


def _read_as(ref: ModelRef, precision: Precision) -> torch.dtype:
    """Return the type that weights are read as: at once the wanted one, so that no copy of twice
    the size stands beside it. Adapters are merged at fp32 first.
    """
    return _DTYPES["fp32" if ref.adapter is not None else precision]


def _check_numbers(model: Any, ref: ModelRef) -> None:  # transformers' models are untyped
    """Raise ModelError where weights are no numbers, or a matrix holds zeros alone.

    A file whose download broke off after its length was reserved ends in zeros.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise ModelError(
                f"{ref.name!r} has weights that are no numbers ({name} in {ref.path}): its "
                "training diverged, or the file is damaged; give another checkpoint"
            )
        if name.endswith(".weight") and tensor.dim() > 1 and not tensor.any():
            raise ModelError(
                f"{ref.name!r} has weights that are all zeros ({name} in {ref.path}): its download "
                "or copy broke off; fetch it again"
            )


@contextlib.contextmanager
def _without_adapter(folder: Path) -> Iterator[Path]:
    """Yield a folder of the same files without an adapter's.

    Where peft is installed, transformers would put an adapter into the model by itself, unmerged,
    and say nothing of weights that are missing.
    """
    if not is_adapter(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="capfilt-") as clean:
        for file in folder.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(clean) / file.name).symlink_to(file.resolve())
        yield Path(clean)


def _merged(model: Any, ref: ModelRef, adapter: str) -> Any:  # untyped classes
    """Return a model with an adapter merged into its weights.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    given = set(read_tensors(adapter_file(Path(adapter))))
    try:
        with warnings.catch_warnings(action="ignore"):  # between peft and transformers
            adapted = PeftModel.from_pretrained(model, adapter, local_files_only=True)
        placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except (*_UNREADABLE, AttributeError) as error:
        raise ModelError(
            f"the adapter {adapter} does not fit {ref.path}: {_one_line(error)}"
        ) from error
    # peft leaves a module without matrices as the base has it; half a module would be random.
    begun = {_ADAPTED.sub("", name) for name in given}
    missing = sorted(name for name in placed - given if _ADAPTED.sub("", name) in begun)
    unexpected = sorted(given - placed)
    if missing or unexpected:
        raise ModelError(
            f"the adapter {adapter} does not fit {ref.path}: {_told('missing', missing)}, "
            f"{_told('unexpected', unexpected)}; give it the base that it was trained on"
        )
    return adapted.merge_and_unload()


def load_tokenizer(ref: ModelRef, kind: ModelKind) -> Any:  # transformers' tokenizers are untyped
    """Load the tokenizer that lies beside the weights.

    Raises:
        ModelError: there is none, it cannot be read, or it does not fit the weights.
    """
    tokenizer = read_tokenizer(Path(ref.path), ref.name)
    check_vocabulary(Path(ref.path), kind, tokenizer.get_vocab())
    return tokenizer


def read_tokenizer(folder: Path, name: str) -> Any:  # transformers' tokenizers are untyped
    """Load the tokenizer in a folder; `name` is the model's, for an error.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except _UNREADABLE as error:
        raise ModelError(
            f"{name!r} has no usable tokenizer in {folder}: {_one_line(error)}"
        ) from error


class Normaliser:
    """Turns (side, side, 3) RGB bytes into normalised pixel tensors, as the checkpoint was trained.

    Raises:
        ModelError: there is no preprocessing beside the weights, or it is not that of the kind.
    """

    def __init__(self, ref: ModelRef, kind: ModelKind, device: str, dtype: torch.dtype) -> None:
        found = preprocessing_of(Path(ref.path), kind)
        self.side = found.side
        self._mean = torch.tensor(found.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(found.std, device=device).view(3, 1, 1)
        self._dtype = dtype

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, side, side) of the model's type for bytes (B, side, side, 3)."""
        scaled = images.permute(0, 3, 1, 2).float() / 255.0
        return ((scaled - self._mean) / self._std).to(self._dtype)


def _told(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
