"""From what a user calls a model to a folder of files with a digest. Never imports torch."""

import hashlib
import json
from pathlib import Path
from typing import Final

from capfilt.errors import ModelError
from capfilt.models.families import Role, model_kind
from capfilt.models.recipe import ModelRef

EMBEDDED: Final = "embedded"
EMBEDDED_FOLDER: Final = Path(__file__).parent / "embedded"  # has a folder for each role
# Files that a model is made of; anything else in the folder (a README, other frameworks' weights)
# changes no result.
_PARTS: Final = ("*.json", "*.safetensors", "*.txt", "*.model")
# A folder inside a checkpoint that is part of it (InstructBLIP's second tokenizer).
_INNER: Final = "qformer_tokenizer"


def resolve_model(name: str, role: Role, revision: str | None = None) -> ModelRef:
    """Find the folder of a model and digest its files.

    `name` is `embedded` (the small model that capfilt ships), a folder, or a hub name. A folder may
    be what a training left, with a captioner, a matcher or both in it. A hub name is downloaded,
    or found in the hub's cache where HF_HUB_OFFLINE is set.

    Raises:
        ModelError: there is no such model, files are missing, or it is of the wrong kind.
    """
    folder = _folder_of(name, role, revision)
    _check_kind(folder, role)
    return ModelRef(digest=_digest(folder), name=name, path=str(folder))


def weight_bytes(model: ModelRef) -> int:
    """Return the size of a model's weight files in bytes."""
    return sum(file.stat().st_size for file in Path(model.path).glob("*.safetensors"))


def share_weights(one: ModelRef, other: ModelRef) -> bool:
    """Say whether two checkpoints have the same image encoder, bit for bit.

    Captioner and filter are fine-tuned apart; a filter that shares the captioner's weights shares
    its mistakes and lets them pass (BLIP Table 4: noise 8 % instead of 25 %).
    """
    mine, others = _vision_digests(one), _vision_digests(other)
    return bool(mine) and mine == others


def _vision_digests(ref: ModelRef) -> dict[str, str]:
    """Return the digests of the image encoder's matrices, by name."""
    digests: dict[str, str] = {}
    for file in sorted(Path(ref.path).glob("*.safetensors")):
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_bytes))
            for name, entry in header.items():
                if name.startswith("vision_model.") and name.endswith("qkv.weight"):
                    start, end = entry["data_offsets"]
                    stream.seek(8 + header_bytes + start)
                    digests[name] = hashlib.sha256(stream.read(end - start)).hexdigest()
    return digests


def _folder_of(name: str, role: Role, revision: str | None) -> Path:
    if name == EMBEDDED:
        return EMBEDDED_FOLDER / role
    if Path(name).is_dir():
        given = Path(name).resolve()
        # What `capfilt train` leaves has a folder of each.
        trained = not (given / "config.json").exists() and (given / role / "config.json").exists()
        return given / role if trained else given
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"there is no folder {name!r} with a {role}; give a folder, a hub name such as "
            f"Salesforce/blip-image-captioning-base, or {EMBEDDED!r}"
        )
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_PARTS)))
    except Exception as error:  # the hub's client raises many unrelated kinds
        raise ModelError(
            f"cannot get {name!r} from the hub ({type(error).__name__}: {error}); check the name, "
            "log in where it is private, or download it and give its folder"
        ) from error


def _check_kind(folder: Path, role: Role) -> None:
    model_kind(folder, role)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors file; convert the checkpoint with "
            "transformers' save_pretrained"
        )


def _digest(folder: Path) -> str:
    """Return SHA-256 over the sorted names and contents of the model's files, 32 digits."""
    places = (folder, folder / _INNER)
    files = sorted({file for part in _PARTS for place in places for file in place.glob(part)})
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()}\x00{content}\n".encode())
    return total.hexdigest()[:32]
