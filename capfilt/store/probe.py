"""Whether a store lets one writer win: tried before any work, since everything rests on it.

Stores that take the condition and ignore it let every writer win, and the last one's file stands.
"""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from capfilt.errors import StorageError
from capfilt.store.bucket import BucketPath

_WRITERS: Final = 8
_FOLDER: Final = ".probe"
KNOWN: Final = (
    "S3, Google Cloud Storage, Azure Blob Storage and Cloudflare R2 do; some servers do in a newer "
    "version or in another mode"
)


def probe(root: BucketPath) -> None:
    """Create fresh names below a place: each must be won once and then lost, also when raced.

    What it wrote is removed. An answer that gets lost on the way is no fault of the store: a first
    writer may then hear that the name is taken, by itself.

    Raises:
        StorageError: the store lets several writers win, or does not answer.
    """
    path = root / _FOLDER / uuid.uuid4().hex
    try:
        path.objects.put_new(path.key, b"first")
        if path.objects.put_new(path.key, b"other"):
            raise _refused(root, "a second writer of one name wins too")
        if path.read_bytes() != b"first":
            raise _refused(root, "a second writer replaces the first one's file")
    finally:
        path.objects.delete(path.key)
    _race(root)


def _race(root: BucketPath) -> None:
    path = root / _FOLDER / uuid.uuid4().hex
    writers = [b"%d" % number for number in range(_WRITERS)]
    try:
        with ThreadPoolExecutor(_WRITERS) as pool:
            won = list(pool.map(lambda content: path.objects.put_new(path.key, content), writers))
        winners = [content for content, was in zip(writers, won, strict=True) if was]
        if len(winners) > 1:
            raise _refused(root, f"of {_WRITERS} writers of one name at once {len(winners)} win")
        if winners and path.read_bytes() != winners[0]:
            raise _refused(root, "the file is not the winner's after a race")
    finally:
        path.objects.delete(path.key)


def _refused(root: BucketPath, what: str) -> StorageError:
    return StorageError(
        f"the store of {root.root} cannot hold a run: {what}. It must create an object only where "
        f"there is none (If-None-Match: *), which {KNOWN}. Give another store, or a local folder"
    )
