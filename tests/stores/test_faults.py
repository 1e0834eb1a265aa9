"""Buckets that fail, are away, or are none for a run: nothing is written twice, nothing is told."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import InputError, StorageError
from capfilt.store import objects
from capfilt.store.location import Location, location
from capfilt.store.reading import names_below
from capfilt.store.stores import store_of
from tests.stores.conftest import use
from tests.stores.server import (
    BUCKET,
    KEY_ID,
    SECRET,
    TOKEN,
    Bucket,
    await_port,
    free_port,
    serving,
)
from tests.stores.test_contract import holding

pytest.importorskip("obstore", reason="buckets need it: pip install 'capfilt[cloud]'")


def test_of_racing_writers_one_wins_whatever_the_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, faults=0.3) as bucket:
        use(bucket, monkeypatch)
        root = location(bucket.place("faults"))
        store_of(root).check()

        def create(number: int) -> tuple[str, bytes, bool]:
            name, content = f"{number % 12}.txt", b"writer %d" % number
            return name, content, store_of(root).put_new(name, holding(content))

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(create, range(48)))
        held = {name: (root / name).read_bytes() for name in {name for name, *_ in done}}
        assert len(held) == 12
        assert all(held[name] == content for name, content, won in done if won)
        assert sorted(names_below(root)) == sorted(held)


def test_a_server_that_is_killed_and_comes_back_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as bucket:
        use(bucket, monkeypatch)
        root = location(bucket.place("back"))
        assert store_of(root).put_new("a", holding(b"a"))
        bucket.kill()
        again = threading.Timer(0.5, bucket.start)
        again.start()
        assert (root / "a").read_bytes() == b"a"
        again.join()
        assert store_of(root).put_new("b", holding(b"b"))


def test_a_server_that_stays_away_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path)  # nobody listens
    use(bucket, monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    root = location(bucket.place("away"))
    for act in (
        lambda: store_of(root).put_new("a", holding(b"a")),
        (root / "a").read_bytes,
        lambda: list(root.iterdir()),
    ):
        with pytest.raises(StorageError, match=rf"s3://{BUCKET}/away.* run the same command again"):
            act()


@pytest.mark.parametrize(
    ("manner", "told"),
    [
        ("careless", "cannot hold a run: a second writer of one name wins too.*If-None-Match"),
        ("unable", "the store cannot do that .*501 Not Implemented.*only where there is none"),
    ],
)
def test_a_store_without_atomic_create_is_refused_with_a_remedy(
    manner: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, manner=manner) as bucket:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # a 501 too is tried again
        use(bucket, monkeypatch)
        root = location(bucket.place("none"))
        with pytest.raises(StorageError, match=f"s3://{BUCKET}.*{told}"):
            store_of(root).check()
        assert bucket.files("") == []


def test_nanio_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that people use, which takes the condition and ignores it."""
    pytest.importorskip("nanio", reason="the server of a bucket is not installed")
    port = free_port()
    command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(tmp_path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    keys = {"NANIO_ACCESS_KEY": KEY_ID, "NANIO_SECRET_KEY": SECRET}
    server = subprocess.Popen(command, env={**os.environ, **keys}, stderr=subprocess.DEVNULL)
    try:
        await_port(port, server)
        use(Bucket(tmp_path, port=port), monkeypatch)
        monkeypatch.delenv("AWS_SESSION_TOKEN")
        with pytest.raises(StorageError, match=r"cannot hold a run: .*Give another store"):
            store_of(location(f"s3://{BUCKET}/run")).check()
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()


def test_what_a_hostile_server_repeats_is_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, manner="hostile") as bucket:
        use(bucket, monkeypatch)
        root = location(bucket.place("hostile"))
        for act in _verbs(root):
            with pytest.raises(StorageError) as caught:
                act()
            said = f"{caught.value!r} {caught.value.__cause__!r}"
            assert "403 Forbidden" in said
            assert "AWS_ACCESS_KEY_ID" in said
            assert not [s for s in (KEY_ID, SECRET, TOKEN, "Signature") if s in said]


def _verbs(root: Location) -> list[Any]:
    store = store_of(root)
    return [
        store.check,
        store.check_access,
        lambda: store.put_new("a", holding(b"a")),
        lambda: store.point("latest", "a"),
        lambda: store.set_aside(root / "a"),
        lambda: store.remove(root / "a"),
        (root / "a").read_bytes,
        (root / "a").exists,
        lambda: (root / "a").open("rb"),
        lambda: list(root.iterdir()),
    ]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://key:secret-word@bucket/run", "credentials come from the environment alone"),
        ("s3://bucket/run?X-Amz-Signature=secret-word", "has a query or fragment"),
        ("s3://", "there is no bucket ''"),
        ("gs://b", "there is no bucket 'b'"),
        ("s3://bucket/../run", "no '.', '..' or control characters"),
        ("https://bucket.example/run", "no place for files that capfilt knows"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        location(address)
    assert told in str(caught.value)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("act", [lambda p: p.exists(), lambda p: store_of(p).check()])
def test_azure_without_an_account_is_told_which_variables(
    act: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    objects._client.cache_clear()
    with pytest.raises(StorageError, match=r"cannot open az://container: .*ACCOUNT_NAME with") as e:
        act(location("az://container/run"))
    assert "run the same command again" not in str(e.value)


@pytest.mark.parametrize("address", ["gs://bucket/a//b/", "AZ://bucket/a/b"])
def test_all_schemes_are_places_of_the_same_verbs(address: str) -> None:
    place = location(address) / "c"
    assert str(place) == f"{address[:2].lower()}://bucket/a/b/c"


def test_secrets_of_the_environment_and_of_addresses_are_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "words of a key")
    error = RuntimeError(
        "http://me:word@host/x?sig=abc&se=2 with words of a key failed\nDebug source: z"
    )
    assert objects.told(error) == "http://…@host/x?… with … failed"
