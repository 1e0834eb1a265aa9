"""The download stage: the images of a shard, from the web by img2dataset or from local files.

Both ways end in one decoder and img2dataset's statuses, so that what comes after cannot tell where
an image came from. A row that fails keeps its place, with a status, a kind of failure and a reason.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Final

import pyarrow as pa

from capfilt import schema
from capfilt.errors import InputError
from capfilt.inputs import urls as addresses
from capfilt.option import DOWNLOAD, check_options, option
from capfilt.stage import Resource, Transform
from capfilt.stages.download.decoder import DecoderProcess, decoder_process
from capfilt.stages.download.faults import Reason
from capfilt.stages.download.fetch import Fetcher
from capfilt.stages.download.health import Health, machine_probes
from capfilt.stages.download.limits import make_room
from capfilt.stages.download.opener import Limits, guarded_urlopen
from capfilt.stages.download.proxy import ENV, NONE, Proxy
from capfilt.stages.download.resizer import Resize
from capfilt.stages.failures import split_reason

_Fetched = dict[str, Any]  # one row of schema.DOWNLOAD, as img2dataset hands it over; absent: null

_LONGEST_REASON: Final = 300  # characters
_LOST: Final = "the downloader returned nothing for this row"
_ORIENTATION: Final = "Image Orientation"  # as exifread calls it


@dataclass(frozen=True)
class Download:
    """Fetch by HTTP, or read where a row names a local image. Times in seconds, sizes in bytes.

    Identity is what changes the picture or whether it may be used: `max_bytes`, and the opt-outs
    in X-Robots-Tag headers (`disallowed_header_directives`, addressed to everybody or to
    `user_agent_token`). Whom it is asked of and how fast is none: `timeout` for each wait on the
    socket, `total_timeout` for the whole request with its redirects, `threads` requests at a time,
    `host_requests` of them to one host; `allow_private_hosts`, `user_agent` (None: img2dataset's),
    `referer` (`none`, `origin`, an address) and `proxy` (`none`, `env`, an address, which belongs
    to the machine and is never recorded).
    """

    resize: Resize = Resize()
    allow_private_hosts: bool = option(
        False, "Also fetch from private and loopback addresses", panel=DOWNLOAD, identity=False
    )
    max_bytes: int = option(50_000_000, "Refuse files of more bytes", panel=DOWNLOAD, above=0)
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    timeout: float = option(
        10.0,
        "Seconds to wait for a connection or for more bytes",
        panel=DOWNLOAD,
        identity=False,
        above=0,
    )
    total_timeout: float = option(
        60.0,
        "Seconds that a request may take, with its redirects",
        panel=DOWNLOAD,
        identity=False,
        above=0,
    )
    threads: int = option(
        32, "Requests at the same time, for each worker", panel=DOWNLOAD, identity=False, at_least=1
    )
    host_requests: int = option(
        8,
        "Requests at the same time to one host, for each worker",
        panel=DOWNLOAD,
        identity=False,
        at_least=1,
    )
    user_agent: str | None = option(
        None, "The whole User-Agent header", panel=DOWNLOAD, shown="img2dataset's", identity=False
    )
    referer: str = option(
        "none",
        "The Referer header: none, origin (the address's own) or an address",
        panel=DOWNLOAD,
        identity=False,
    )
    proxy: str = option(
        NONE,
        "none, env (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) or http://host:port",
        panel=DOWNLOAD,
        identity=False,
        recorded=False,
    )

    name = "download"
    version = 3
    changes: ClassVar[dict[int, str]] = {
        2: "pictures are stored as a viewer shows them (EXIF orientation, 16 bits, colour "
        "profiles), cut-off ones are failures, addresses are read as browsers read them, opt-outs "
        "are honoured on every redirect, and failures have kinds",
        3: "every kind of grey follows its colour profile, and a transparent colour of 16 bits is "
        "told from its neighbours",
    }
    resource: ClassVar[Resource] = "network"
    rows_per_call = None
    needs = ("url", "image_ref", "source_status", "source_error")
    adds = schema.DOWNLOAD

    def __post_init__(self) -> None:
        """Check the ranges: with one of these at 0 every row would fail, one by one."""
        check_options(self)
        if self.referer not in {"none", "origin"} and addresses.fault_of(self.referer):
            raise InputError(f"referer is {self.referer!r}; give none, origin or an address")
        for name in ("user_agent", "referer"):
            if not _is_header(getattr(self, name) or "-"):
                raise InputError(f"{name} must be printable ASCII characters, as headers are")
        if self.proxy not in {NONE, ENV}:
            Proxy.parse(self.proxy, "--proxy")

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Install the guarded opener, and yield the transform."""
        self.resize.check_quality()
        with guarded_urlopen(self._limits()) as opener, decoder_process(self.resize) as decoder:
            fetching = Fetcher(
                opener=opener,
                health=Health(machine_probes(self.allow_private_hosts)),
                threads=make_room(self.threads),
                host_requests=self.host_requests,
                timeout=self.timeout,
                total_timeout=self.total_timeout,
            )
            yield lambda batch: self._fetch(batch, fetching, decoder)

    def crashed(self, how: str) -> dict[str, object]:
        """Return the columns of a row that ended its process (see isolation.py)."""
        return {"status": schema.FAILED_TO_RESIZE, **_fault(f"crashed_decoder: {how}")}

    def _limits(self) -> Limits:
        return Limits(
            allow_private_hosts=self.allow_private_hosts,
            total_seconds=self.total_timeout,
            max_bytes=self.max_bytes,
            proxy=self.proxy,
            user_agent=self.user_agent,
            referer=self.referer,
            token=self.user_agent_token,
            opt_outs=self.disallowed_header_directives,
        )

    def _fetch(
        self, batch: pa.RecordBatch, fetching: Fetcher, decoder: DecoderProcess
    ) -> pa.RecordBatch:
        statuses = batch.column("source_status").to_pylist()
        reasons = batch.column("source_error").to_pylist()
        refs = batch.column("image_ref").to_pylist()
        urls = batch.column("url").to_pylist()
        ok = [status in {schema.SOURCE_OK, schema.ANOTHER_TEXT} for status in statuses]
        remote = [place for place, ref in enumerate(refs) if ok[place] and ref is None]
        rows: list[_Fetched] = [
            {"status": status, "failure": status, "error_message": reason}
            for status, reason in zip(statuses, reasons, strict=True)
        ]
        # Rows of one image, which differ in their texts, share one request.
        wanted = list(dict.fromkeys(urls[place].strip() for place in remote))
        fetched = dict(zip(wanted, self._download(wanted, fetching, decoder), strict=True))
        for place in remote:
            rows[place] = fetched[urls[place].strip()]
        for place, ref in enumerate(refs):
            if ok[place] and ref is not None:
                rows[place] = _ingest(ref, decoder)
        decoder.check()
        arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema.DOWNLOAD]
        return pa.record_batch(arrays, schema=schema.DOWNLOAD)

    def _download(
        self, urls: list[str], fetching: Fetcher, decoder: DecoderProcess
    ) -> list[_Fetched]:
        """Run img2dataset's downloader over `urls`; returns one row each, in order."""
        rows: list[_Fetched] = [
            {"status": schema.FAILED_TO_DOWNLOAD, **_fault(Reason("machine", _LOST))} for _ in urls
        ]
        if urls:
            quiet_dependencies()
            fetching.run(
                urls,
                _collector(rows),
                decoder,
                compute_hash="sha256",
                encode_format=self.resize.encode_format,
                user_agent_token=self.user_agent_token,
            )
        return rows


def quiet_dependencies() -> None:
    """Keep what img2dataset imports off the network, quiet, and out of the temporary folder."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import_without_wandb()


def import_without_wandb() -> None:
    """Import img2dataset, and spare it wandb: half a second, and folders in the temporary folder.

    Only img2dataset's own logger would use it, which we do not; should somebody else, it is
    imported then.
    """
    if "img2dataset" in sys.modules or "wandb" in sys.modules:
        return
    late = ModuleType("wandb")

    def found(name: str) -> Any:  # anything of wandb's
        if sys.modules.get("wandb") is late or name.startswith("__"):
            raise AttributeError(f"wandb is not imported yet: {name}")
        return getattr(importlib.import_module("wandb"), name)

    late.__getattr__ = found  # type: ignore[method-assign]  # PEP 562
    sys.modules["wandb"] = late
    try:
        import img2dataset  # noqa: F401  # for what the import does
    finally:
        del sys.modules["wandb"]


def _ingest(ref: str, decoder: DecoderProcess) -> _Fetched:
    from capfilt.inputs import read_image
    from capfilt.inputs.refs import ChangedFile

    try:
        data = read_image(ref)
    except (InputError, OSError) as error:
        kind = "changed_file" if isinstance(error, ChangedFile) else "missing_file"
        return {"status": schema.FAILED_TO_DOWNLOAD, **_fault(Reason(kind, str(error)))}
    image, width, height, original_width, original_height, fault = decoder(io.BytesIO(data))
    if image is None:
        return {"status": schema.FAILED_TO_RESIZE, **_fault(fault)}
    return {
        "status": schema.SUCCESS,
        "image": image,
        "image_bytes": len(image),
        "width": width,
        "height": height,
        "original_width": original_width,
        "original_height": original_height,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _fault(reason: str | None) -> _Fetched:
    """Return the columns that say why there is no picture, from a Reason or `kind: words`."""
    if isinstance(reason, Reason):
        return {"failure": reason.failure, "error_message": _reason(reason)}
    kind, words = split_reason(_reason(reason))
    return {"failure": kind, "error_message": words}


def _without_orientation(exif: str | None) -> str | None:
    """Leave the orientation out of img2dataset's JSON: the stored pixels have it already."""
    if exif is None or _ORIENTATION not in exif:
        return exif
    return json.dumps({k: v for k, v in json.loads(exif).items() if k != _ORIENTATION})


def _is_header(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _reason(message: str | None) -> str:
    """Return a failure's message, whole characters only: a server can put anything into it."""
    text = (message or "failed without a message")[:_LONGEST_REASON]
    return text.encode("utf-8", "replace").decode("utf-8")


def _collector(rows: list[_Fetched]) -> Callable[..., object]:
    """Return a sample writer class for img2dataset that puts each row at its own place."""

    class Collector:
        def __init__(self, *_: object) -> None:
            pass

        def write(self, image: bytes | None, key: str, _: object, meta: dict[str, Any]) -> None:
            row = {name: meta.get(name) for name in schema.DOWNLOAD.names}
            row["image"] = image
            row["image_bytes"] = None if image is None else len(image)
            row["exif"] = _without_orientation(meta.get("exif"))
            if image is None:
                row.update(_fault(meta["error_message"]))
            rows[int(key)] = row

        def close(self) -> None:
            pass

    return Collector
