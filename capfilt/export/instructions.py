"""Samples in the form of instructions (InstructBLIP, arXiv 2305.06500, section 2)."""

from hashlib import blake2b
from pathlib import Path
from typing import Final

import pyarrow as pa

from capfilt.errors import InputError

# The paper's templates for captioning (appendix D).
INSTRUCTBLIP: Final = (
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "An image that shows",
    "Write a short description for the image.",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)


def load_instructions(name: str) -> tuple[str, ...]:
    """Return the instructions of that name: `instructblip`, or a text file, one a line.

    Raises:
        InputError: there is no such file, it is no UTF-8, or it has no line.
    """
    if name == "instructblip":
        return INSTRUCTBLIP
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--instructions {name}: {error}; give 'instructblip', or a text file with an "
            "instruction a line"
        ) from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise InputError(f"--instructions {name} has no line; give an instruction a line")
    return found


def drawn(instructions: tuple[str, ...], table: pa.Table) -> pa.Array:
    """Return an instruction for each row of an export, a function of `key` and `caption_index`."""
    rows = zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True)
    return pa.array([_one(instructions, key, index) for key, index in rows], pa.string())


def _one(instructions: tuple[str, ...], key: str, index: int | None) -> str:
    digest = blake2b(f"{key}/{index}".encode(), digest_size=8, person=b"capfilt-instruct")
    return instructions[int.from_bytes(digest.digest(), "big") % len(instructions)]
