"""The columns that travel through a round: their names, types and meanings.

Names are img2dataset's and LAION's where these have one. Every stage adds columns for the same
rows in the same order; no stage rewrites one. A row is never dropped: a failed row keeps its
place with a status and a reason, and its later columns are null.
"""

from typing import Final

import pyarrow as pa

# Values of `source_status`: what the input itself says of a row, before any work.
SOURCE_OK: Final = "ok"
# A further text of the image of the rows before: judged with it, but the image is captioned once.
ANOTHER_TEXT: Final = "another_text"
DUPLICATE_URL: Final = "duplicate_url"  # an earlier row of the input has the same address
INVALID_URL: Final = "invalid_url"  # empty, not http(s), or not parseable

# Values of `status`: img2dataset's three, or the row's source_status where that is not "ok".
SUCCESS: Final = "success"
FAILED_TO_DOWNLOAD: Final = "failed_to_download"
FAILED_TO_RESIZE: Final = "failed_to_resize"

# Values of `origin`: who wrote a text.
ORIGIN_WEB: Final = "web"
ORIGIN_SYNTHETIC: Final = "synthetic"
ORIGIN_HUMAN: Final = "human"

SOURCE: Final = pa.schema(
    [
        # 32 hex digits, blake2b-128 of (url or image name, caption, occurrence): the sample key.
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string()),  # as given; for a local image without one, its relative path
        pa.field("caption", pa.string()),  # the web text as given; null or "" where there is none
        # Where a local image lies (see source.py); null for an image that must be downloaded.
        pa.field("image_ref", pa.string()),
        pa.field("source_status", pa.string(), nullable=False),
        pa.field("source_error", pa.string()),  # null where source_status is "ok"
        # 0 for a row of the input, n for its n-th `capfilt retry`.
        pa.field("attempt", pa.int32(), nullable=False),
    ]
)

DOWNLOAD: Final = pa.schema(
    [
        pa.field("status", pa.string(), nullable=False),
        # Why there is no picture: a word of stages/failures.py, or the row's source_status; null
        # where status is "success".
        pa.field("failure", pa.string()),
        pa.field("error_message", pa.string()),  # the same in words; null where status is "success"
        pa.field("image", pa.binary()),  # encoded (JPEG unless configured); null on failure
        pa.field("image_bytes", pa.int32()),  # len(image): lets the export plan without reading it
        pa.field("width", pa.int32()),  # pixels, after resizing
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),  # pixels, as fetched
        pa.field("original_height", pa.int32()),
        pa.field("exif", pa.string()),  # JSON object
        pa.field("sha256", pa.string()),  # hex, of the bytes as fetched
    ]
)

CAPTION: Final = pa.schema(
    [
        pa.field("captions", pa.list_(pa.string())),  # K synthetic texts; null without an image
        pa.field("caption_error", pa.string()),
    ]
)

# Web texts and synthetic texts are scored by two stages, so that another captioner leaves the
# scores of the web texts alone.
MATCH_WEB: Final = pa.schema(
    [
        # softmax(ITM)[match] in [0, 1] of the web text; null where there is no text or no image.
        pa.field("itm_score", pa.float32()),
        pa.field("itc_score", pa.float32()),  # cosine similarity in [-1, 1]
        # The matcher's ITC image embedding, L2-normalised; null without an image.
        pa.field("image_embedding", pa.list_(pa.float32())),
        pa.field("match_error", pa.string()),
    ]
)

MATCH_CAPTIONS: Final = pa.schema(
    [
        pa.field("caption_itm_scores", pa.list_(pa.float32())),  # aligned with `captions`
        pa.field("caption_itc_scores", pa.list_(pa.float32())),
    ]
)

# The same of a second model (`--scorer`): cosine similarities in [-1, 1], CLIP's for most.
SCORE_WEB: Final = pa.schema([pa.field("similarity", pa.float32())])

SCORE_CAPTIONS: Final = pa.schema(
    [pa.field("caption_similarities", pa.list_(pa.float32()))]  # aligned with `captions`
)

PHASH: Final = pa.schema([pa.field("phash", pa.uint64())])  # 64-bit DCT hash; null without image

DEDUP: Final = pa.schema([pa.field("dup_of", pa.string())])  # key of the kept copy, or null

CONTAMINATION: Final = pa.schema(
    [
        pa.field("image_in", pa.string()),  # the evaluation set that has the picture, or null
        pa.field("image_in_bits", pa.int32()),  # of 64, by which the perceptual hashes differ
        pa.field("image_in_cosine", pa.float32()),  # of the embeddings; null without a model
        pa.field("text_in", pa.string()),  # the evaluation set that has the web text, or null
        pa.field("text_in_share", pa.float32()),  # of its n-grams, (0, 1]
        pa.field("captions_in", pa.list_(pa.string())),  # aligned with `captions`
        pa.field("captions_in_share", pa.list_(pa.float32())),
    ]
)

SELECT: Final = pa.schema(
    [
        pa.field("keep_web", pa.bool_(), nullable=False),
        # Aligned with `captions`; an empty list where there are none.
        pa.field("keep_captions", pa.list_(pa.bool_()), nullable=False),
        # One word a row, from a closed set; the funnel counts it (see stages/select.py).
        pa.field("reason", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    ]
)
