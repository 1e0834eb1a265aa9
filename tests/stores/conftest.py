from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.store import objects
from tests.stores.server import Bucket, serving


@pytest.fixture(scope="session")
def shared_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket that always answers."""
    pytest.importorskip("obstore", reason="buckets need it: pip install 'capfilt[cloud]'")
    pytest.importorskip("localbucket", reason="the server of a bucket is not installed")
    with serving(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@pytest.fixture
def bucket(shared_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket, as this process and those that it starts find it."""
    use(shared_bucket, monkeypatch)
    return shared_bucket


def use(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, cache: Path | None = None) -> None:
    """Let this process, and those that it starts, find a bucket."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    objects._client.cache_clear()  # a process otherwise keeps to the server that it began with
    if cache is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
