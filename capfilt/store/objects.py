"""The objects of a bucket, by obstore: S3 and what speaks like it, Google's and Azure's.

Credentials come from the environment's own chain: variables, a workload's identity, the machine's
metadata. What a service answers is told without anything that could be one.
"""

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn

from capfilt.errors import InputError, StorageError

TAIL: Final = 1 << 16  # bytes that come with the size: footers, and small files as a whole
LARGEST: Final = 5 * 10**9  # bytes of one PUT; in parts a create would not be atomic everywhere
_TRIES: Final = 6  # of a create that was answered by neither yes nor no
_ATTEMPTS: Final = "AWS_MAX_ATTEMPTS"
_RETRIES: Final = 8  # after the first try of a request, with back-off: half a minute in all
_LONGEST: Final = 300  # characters of what a service says
_SECRETS: Final = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|SIGNATURE|SAS", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?[^\s\"'<>)]*")
_USER: Final = re.compile(r"//[^/\s@]*@")
_STATUS: Final = re.compile(r"status code: (\d{3} ?[A-Za-z ]*)")
_CODE: Final = re.compile(r"<Code>(\w{1,80})</Code>")


@dataclass(frozen=True, slots=True)
class Info:
    """What a bucket says of an object."""

    size: int
    mtime_ns: int
    etag: str


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one bucket, `address` being `scheme://bucket`.

    Every method raises StorageError where the service does not answer, or refuses; what is missing
    is a FileNotFoundError, or None.
    """

    address: str

    def put_new(self, key: str, content: Any) -> bool:  # anything with the buffer protocol
        """Create an object; False where there was one, which is left alone.

        One request with a condition, so that of any number of writers one wins. An answer that
        got lost is asked for again; then an object that holds the same bytes counts as ours.
        """
        size = memoryview(content).nbytes
        if size > LARGEST:
            raise StorageError(
                f"{self.address}/{key} would have {size:,} bytes; a bucket takes "
                f"{LARGEST:,} at once: give smaller files or shards (--target-mb, --shard-rows)"
            )
        for again in range(_TRIES):
            if again:
                time.sleep(min(0.1 * 2**again, 5.0))
            won = self._created(key, content)
            if won is None:  # a conflict of writers, or no answer: which, the object tells
                there = self.head(key)
                if there is not None and there.size == size:
                    return bool(self.get(key) == bytes(memoryview(content)))
                won = False if there is not None else None
            if won is not None:
                return won
        raise StorageError(
            f"cannot write {self.address}/{key}: the store gave no clear answer {_TRIES} times. "
            "Finished shards are kept; run the same command again to go on."
        )

    def put(self, key: str, content: bytes) -> None:
        """Write an object, whatever it held."""
        import obstore

        with self._told("write", key):
            obstore.put(self._client, key, content, use_multipart=False)

    def head(self, key: str) -> Info | None:
        """Return what is known of an object; None: there is none."""
        import obstore

        with self._told("look at", key), contextlib.suppress(FileNotFoundError):
            return _info(obstore.head(self._client, key))
        return None

    def get(self, key: str, start: int = 0, stop: int | None = None, etag: str = "") -> bytes:
        """Return the bytes of an object from `start` to before `stop` (None: its end).

        `etag`: it must still be that object, where the service looks at it.
        """
        import obstore

        options: dict[str, Any] = {}
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}
        if etag:
            options["if_match"] = etag
        with self._told("read", key):
            return bytes(obstore.get(self._client, key, options=options).bytes())  # type: ignore[arg-type]

    def tail(self, key: str, count: int = TAIL) -> tuple[bytes, Info]:
        """Return the last bytes of an object, at the most `count`, and what is known of it."""
        import obstore
        from obstore.exceptions import BaseError

        with self._told("read", key):
            try:
                got = obstore.get(self._client, key, options={"range": {"suffix": count}})
                return bytes(got.bytes()), _info(got.meta)
            except BaseError:
                found = obstore.head(self._client, key)  # an empty object has no range; nor some
                if found["size"] > count:  # services a range from the end
                    start = found["size"] - count
                    return self.get(key, start, found["size"], found["e_tag"] or ""), _info(found)
                return self.get(key) if found["size"] else b"", _info(found)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder, as the service sorts them; a request a thousand."""
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield key and bytes of the objects below a folder; see `keys`."""
        import obstore

        with self._told("list", prefix):
            for batch in obstore.list(self._client, prefix or None, chunk_size=1000):
                yield from ((meta["path"], meta["size"]) for meta in batch)

    def folder(self, prefix: str) -> list[str]:
        """Return the keys of objects and folders directly below a folder, sorted."""
        import obstore

        with self._told("list", prefix):
            found = obstore.list_with_delimiter(self._client, prefix or None)
        return sorted([*found["common_prefixes"], *(meta["path"] for meta in found["objects"])])

    def delete(self, key: str) -> None:
        """Remove an object; where there is none, nothing happens."""
        import obstore

        with self._told("remove", key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._client, key)

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the bucket; what `to` held is replaced."""
        import obstore

        with self._told("copy", key):
            obstore.copy(self._client, key, to)

    def _created(self, key: str, content: Any) -> bool | None:  # as in `put_new`
        """Try to create an object; None: the answer says neither yes nor no."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError

        try:
            with self._told("write", key, GenericError):
                obstore.put(self._client, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError as error:
            # A 409, two writers at one moment, is told like a 412, and nothing may be there after.
            return None if _status(error).startswith("409") else False
        except GenericError as error:
            if not _passes(error):
                _fail("write", f"{self.address}/{key}", error)
            return None
        except FileNotFoundError as error:
            _fail("write", f"{self.address}/{key}", error)
        return True

    @property
    def _client(self) -> Any:  # a store of obstore, whose three kinds share no type
        return _client(self.address, os.getpid())

    @contextlib.contextmanager
    def _told(self, what: str, key: str, *but: type[BaseException]) -> Iterator[None]:
        """Turn what obstore raises into a StorageError; what is missing stays what it is."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        passed: tuple[type[BaseException], ...] = (AlreadyExistsError, *but)
        try:
            yield
        except passed:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
                _fail(what, f"{self.address}/{key}", error)
            raise FileNotFoundError(2, "no such object", f"{self.address}/{key}") from None
        except BaseError as error:
            _fail(what, f"{self.address}/{key}", error)


@functools.cache
def objects_of(address: str) -> Objects:
    """Return the objects of a bucket.

    Raises:
        InputError: obstore is not installed.
    """
    try:
        import obstore  # noqa: F401  # told before any work
    except ImportError as error:
        raise InputError(
            f"{address}: buckets need obstore; pip install 'capfilt[cloud]'"
        ) from error
    return Objects(address)


@functools.cache
def _client(address: str, process: int) -> Any:  # as `Objects._client`; a fork makes its own
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    config: dict[str, Any] = {}
    # In bulk would be fewer requests, which Google's and small servers do not know.
    if address.startswith("s3://"):
        config["disable_bulk_delete"] = True
    try:
        return from_url(
            address, client_options=_client_options(), retry_config=_retries(), **config
        )
    except (BaseError, ValueError) as error:
        raise StorageError(
            f"cannot open {address}: {told(error)}. What it needs comes from the environment: "
            f"{_CHAINS[address.partition('://')[0]]}, or the machine's own identity"
        ) from None


def _retries() -> Any:  # obstore's RetryConfig
    """Say how often a request is tried: as the AWS tools do, by their variable."""
    attempts = os.environ.get(_ATTEMPTS, "")
    return {
        "max_retries": max(0, int(attempts) - 1) if attempts.isdecimal() else _RETRIES,
        "retry_timeout": timedelta(seconds=90),
        "backoff": {
            "init_backoff": timedelta(milliseconds=200),
            "max_backoff": timedelta(seconds=10),
            "base": 4,  # drawn from the first to four times the last: it doubles on average
        },
    }


def _client_options() -> Any:  # obstore's ClientConfig
    """Bound what a request takes; an endpoint without TLS is the user's own choice."""
    options: dict[str, Any] = {}
    if "AWS_TIMEOUT" not in os.environ:
        options["timeout"] = timedelta(seconds=120)  # a large file over a slow line
    if "AWS_CONNECT_TIMEOUT" not in os.environ:
        options["connect_timeout"] = timedelta(seconds=5)
    endpoints = (os.environ.get(name, "") for name in _ENDPOINTS)
    if any(endpoint.startswith("http://") for endpoint in endpoints):
        options["allow_http"] = True
    return options


_ENDPOINTS: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_ENDPOINT")


_CHAINS: Final = {  # where each scheme's credentials may stand
    "s3": (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a profile gives them by "
        "`aws configure export-credentials --format env`"
    ),
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or a service principal",
}
_UNKNOWN: Final = "501"  # Not Implemented


def _passes(error: Exception) -> bool:
    """Say whether a failure may pass: none that a service gives a reason of the 4xx for."""
    status = _status(error)
    return status[:3] != _UNKNOWN and (
        not status.startswith("4") or status[:3] in {"408", "409", "429"}
    )


def _status(error: Exception) -> str:
    """Return the status that a service answered with, such as `409 Conflict`; "" for none."""
    found = _STATUS.search(str(error))
    return found[1].strip() if found else ""


def _fail(what: str, place: str, error: Exception) -> NoReturn:
    """Raise a StorageError that says what failed and what to do, without the error itself."""
    raise StorageError(f"cannot {what} {place}: {_advice(place, error)}") from None


def _advice(place: str, error: Exception) -> str:
    name, said = type(error).__name__, told(error)
    if name in {"PermissionDeniedError", "UnauthenticatedError"} or "403" in said:
        return (
            f"the store refuses it ({said}). Credentials come from the environment "
            f"({_CHAINS[place.partition('://')[0]]}, or the machine's own identity); they need "
            "to read, write, list and delete there"
        )
    if _UNKNOWN in said:
        return (
            f"the store cannot do that ({said}); it must create an object only where there is "
            "none (If-None-Match: *), as S3, Google Cloud Storage, Azure Blob Storage and R2 do"
        )
    if "NoSuchBucket" in said or "ContainerNotFound" in said:
        return "there is no such bucket; make it, or give another"
    return f"{said}. Finished shards are kept; run the same command again to go on."


def told(error: Exception) -> str:
    """Return what a service said, in a line, without queries, users and secrets in it."""
    text = str(error)
    status, code = _status(error), _CODE.search(text)
    if status:
        return "it answered " + " ".join(filter(None, (status, code and code[1])))
    first = text.partition("Debug source")[0]
    return _redacted(" ".join(first.split()))[:_LONGEST]


def _redacted(text: str) -> str:
    text = _USER.sub("//…@", _QUERY.sub("?…", text))
    for name, value in os.environ.items():
        if _SECRETS.search(name) and len(value) >= 4:
            text = text.replace(value, "…")
    return text


def _info(meta: Any) -> Info:  # obstore's ObjectMeta
    changed: datetime = meta["last_modified"]
    return Info(meta["size"], int(changed.timestamp() * 1e9), meta["e_tag"] or "")
