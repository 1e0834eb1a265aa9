"""Numbers with their nouns, for messages."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return `1 row`, `2 rows`, `1,000 rows`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
