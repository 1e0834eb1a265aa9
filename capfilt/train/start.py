"""Where a training's weights and vocabulary come from. Never imports torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from capfilt.checkpoints import resolve_model


@dataclass(frozen=True, slots=True)
class Start:
    """Where weights and vocabulary come from.

    `folder` holds a checkpoint. `fresh`: only its architecture, tokenizer and preprocessing are
    taken, and weights start anew. Otherwise it is what an earlier training published: a folder with
    `med`, or one with `captioner` and/or `matcher`, or a single checkpoint of either kind.
    `digest` says what is in it.
    """

    folder: Path
    fresh: bool
    digest: str


def start_of(name: str, *, fresh: bool) -> Start:
    """Return a start of that name: a folder, a hub name, or `embedded`.

    Raises:
        ModelError: there is no such checkpoint.
    """
    given = Path(name)
    trained = [given / role for role in ("med", "captioner", "matcher") if (given / role).is_dir()]
    if fresh and (given / "config.json").is_file():
        folder, parts = given, [given]  # an architecture needs no weights
    elif trained:
        # A MED has all that its exports have.
        folder, parts = given, trained[:1] if trained[0].name == "med" else trained
    else:
        folder = Path(resolve_model(name, "captioner").path)
        parts = [folder]
    wanted = ("*.json", "*.txt") if fresh else ("*.json", "*.txt", "*.safetensors")
    digest = hashlib.sha256()
    for file in sorted({file for part in parts for kind in wanted for file in part.glob(kind)}):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.parent.name}/{file.name}\0{content}\n".encode())
    return Start(folder.resolve(), fresh, digest.hexdigest())
