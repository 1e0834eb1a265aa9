"""An image with several texts is captioned once, in the first of its rows."""

import io
from collections.abc import Sequence

import pyarrow as pa
from PIL import Image

from capfilt import schema
from capfilt.stages.caption import Caption, caption_batch


class Echo:
    """A captioner that writes the key."""

    side = 8

    def caption(self, images: Sequence[object], keys: Sequence[str]) -> list[list[str]]:
        assert len(images) == len(keys)
        return [[key] for key in keys]


def test_only_the_first_row_of_an_image_is_captioned() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    statuses = [schema.SOURCE_OK, schema.ANOTHER_TEXT, schema.ANOTHER_TEXT, schema.SOURCE_OK]
    columns = {
        "key": ["a", "b", "c", "d"],
        "image": pa.array([out.getvalue()] * 3 + [None], pa.binary()),
        "source_status": statuses,
    }
    batch = pa.RecordBatch.from_pydict({name: columns[name] for name in Caption.needs})
    found = caption_batch(Echo(), batch)
    assert found.column("captions").to_pylist() == [["a"], None, None, None]
    assert found.column("caption_error").null_count == 4
