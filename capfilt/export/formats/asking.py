"""What a conversation about a picture consists of."""

import re
from typing import Final

import pyarrow as pa

# One of the instructions of InstructBLIP's paper (appendix D), where the export draws none.
QUESTION: Final = "Write a short description for the image."
_PLACEHOLDER: Final = re.compile(r"<(image|video|audio)>")


def asked(table: pa.Table) -> list[str]:
    """Return the question of each row: its instruction, where the export has them."""
    if "text_input" not in table.column_names:
        return [QUESTION] * table.num_rows
    return [without_placeholders(text) for text in table["text_input"].to_pylist()]


def without_placeholders(text: str | None) -> str:
    """Return a text without the words that trainers replace by a picture, and count.

    A text of the web may say `<image>`; then it would ask for a picture that is not there.
    """
    return _PLACEHOLDER.sub(r"(\1)", text or "")
