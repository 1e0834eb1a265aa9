"""Reading what the user has: lists of addresses, and images that are already local.

`open_input` checks everything before any work; `Input.rows` then streams the rows, always in the
same order, and `read_image` fetches the bytes of a local image by its reference.
"""

from capfilt.inputs.checked import open_input
from capfilt.inputs.refs import read_image
from capfilt.inputs.spec import RAW, Input, InputSpec, Piece, Remembered

__all__ = ["RAW", "Input", "InputSpec", "Piece", "Remembered", "open_input", "read_image"]
