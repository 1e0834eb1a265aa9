"""An input format of your own: an image sitemap, as search engines read it.

capfilt run sitemap.xml --run DIR --input-format examples/own_input.py:Sitemap
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa

from capfilt import InputReader

SPACE = "{http://www.google.com/schemas/sitemap-image/1.1}"
COLUMNS = pa.schema([("url", pa.string()), ("caption", pa.string())])


@dataclass(frozen=True)
class Sitemap(InputReader):
    """One row an image: its address, and its caption or title."""

    rows: int = 1000  # a batch

    suffixes = (".xml",)

    def read(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Yield batches of url and caption, in the order of the file."""
        found: list[dict[str, str | None]] = []
        for _, image in ElementTree.iterparse(path):
            if image.tag == f"{SPACE}image":
                texts = {part.tag.removeprefix(SPACE): part.text for part in image}
                caption = texts.get("caption", texts.get("title"))
                found.append({"url": texts.get("loc"), "caption": caption})
                image.clear()
            if len(found) == self.rows:
                yield pa.RecordBatch.from_pylist(found, COLUMNS)
                found = []
        yield pa.RecordBatch.from_pylist(found, COLUMNS)
