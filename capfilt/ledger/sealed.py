"""JSON records that carry their own SHA-256, so that altered values are noticed when read."""

import hashlib
import json
from typing import Any, Final

SEAL: Final = "sha256"


def sealed(plain: dict[str, Any]) -> str:  # JSON
    """Return the text of a record: the fields of `plain`, and the digest over them."""
    return json.dumps({**plain, SEAL: _digest(plain)}, indent=1) + "\n"


def unsealed(text: str) -> dict[str, Any]:  # JSON
    """Return the fields of a record without its digest; a record of an older capfilt has none.

    Raises:
        ValueError: the text is no JSON object, or not the one that was written.
    """
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise ValueError("it holds no JSON object")
    if plain.pop(SEAL, None) is not None and sealed(plain) != text:
        raise ValueError("its values are not those that were written")
    return plain


def _digest(plain: dict[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
