"""The download stage: the images of a shard, from the web by img2dataset or from local files.

Both ways end in img2dataset's resizer and statuses, so that what comes after cannot tell where an
image came from. A row that fails keeps its place, with a status and a reason.
"""

import contextlib
import hashlib
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa

from capfilt import schema
from capfilt.errors import InputError
from capfilt.option import DOWNLOAD, check_options, option
from capfilt.stage import Resource, Transform
from capfilt.stages.failures import http_failure
from capfilt.stages.guard import Limits, guarded_urlopen

ResizeMode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
_Fetched = dict[str, Any]  # one row of schema.DOWNLOAD, as img2dataset hands it over; absent: null

# Failures that can pass: only these are fetched again by `capfilt retry`.
_PASSING: Final = re.compile(
    r"timed out|time-?out|HTTP Error (408|425|429|5\d\d)|connection (reset|refused|aborted)"
    r"|remote end closed|IncompleteRead|temporary failure in name resolution"
    r"|network is unreachable|no route to host|unexpected_eof|EOF occurred|broken pipe",
    re.IGNORECASE,
)
_LONGEST_REASON: Final = 300  # characters
_LOST: Final = "the downloader returned nothing for this row"
# OpenCV's own limit is 2^30 pixels, three gigabytes for one hostile image.
_MAX_PIXELS: Final = 1 << 27


@dataclass(frozen=True, slots=True)
class Resize:
    """img2dataset's resizer: sizes in pixels, area in square pixels, quality 0-100 for JPEG."""

    image_size: int = option(384, "Pixels, as img2dataset has it", panel=DOWNLOAD, above=0)
    resize_mode: ResizeMode = option("keep_ratio", "As img2dataset has it", panel=DOWNLOAD)
    resize_only_if_bigger: bool = True
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int = 95
    skip_reencode: bool = False
    min_image_size: int = option(0, "Least shorter side in pixels", panel=DOWNLOAD, at_least=0)
    max_image_area: float = float(_MAX_PIXELS)
    max_aspect_ratio: float = option(
        20.0, "Longest side over the shortest", panel=DOWNLOAD, above=0
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)


@dataclass(frozen=True)
class Download:
    """Fetch by HTTP, or read where a row names a local image. Times in seconds, sizes in bytes.

    `timeout` is for each wait on the socket, `total_timeout` for the whole request; what they
    and `threads` are does not change what a fetched image looks like, so they are no identity.
    `disallowed_header_directives`: X-Robots-Tag opt-outs that are honoured, as in img2dataset.
    """

    resize: Resize = Resize()
    allow_private_hosts: bool = option(
        False, "Also fetch from private and loopback addresses", panel=DOWNLOAD
    )
    max_bytes: int = 50_000_000
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    timeout: float = option(10.0, "Seconds for each wait", panel=DOWNLOAD, identity=False, above=0)
    total_timeout: float = option(
        60.0, "Seconds for a whole request", panel=DOWNLOAD, identity=False, above=0
    )
    threads: int = option(
        32, "Requests at a time and worker", panel=DOWNLOAD, identity=False, at_least=1
    )

    name = "download"
    version = 1
    resource: ClassVar[Resource] = "network"
    rows_per_call = None
    needs = ("url", "image_ref", "source_status", "source_error")
    adds = schema.DOWNLOAD

    def __post_init__(self) -> None:
        """Check the ranges: with one of these at 0 every row would fail, one by one."""
        check_options(self)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Install the guarded opener, and yield the transform."""
        limits = Limits(self.allow_private_hosts, self.total_timeout, self.max_bytes)
        resizer = make_resizer(self.resize)
        with guarded_urlopen(limits):
            yield lambda batch: self._fetch(batch, resizer)

    def _fetch(self, batch: pa.RecordBatch, resizer: Any) -> pa.RecordBatch:  # img2dataset's class
        statuses = batch.column("source_status").to_pylist()
        reasons = batch.column("source_error").to_pylist()
        refs = batch.column("image_ref").to_pylist()
        urls = batch.column("url").to_pylist()
        ok = [status in {schema.SOURCE_OK, schema.ANOTHER_TEXT} for status in statuses]
        remote = [place for place, ref in enumerate(refs) if ok[place] and ref is None]
        rows: list[_Fetched] = [
            {"status": status, "error_message": reason}
            for status, reason in zip(statuses, reasons, strict=True)
        ]
        # Rows of one image, which differ in their texts, share one request.
        wanted = list(dict.fromkeys(urls[place].strip() for place in remote))
        fetched = dict(zip(wanted, self._download(wanted, resizer), strict=True))
        for place in remote:
            rows[place] = fetched[urls[place].strip()]
        for place, ref in enumerate(refs):
            if ok[place] and ref is not None:
                rows[place] = _ingest(ref, resizer)
        for row in rows:
            row["failure"] = _failure(row["status"], row.get("error_message"))
        arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema.DOWNLOAD]
        return pa.record_batch(arrays, schema=schema.DOWNLOAD)

    def _download(self, urls: list[str], resizer: Any) -> list[_Fetched]:  # as above
        """Run img2dataset's downloader over `urls`; returns one row each, in order."""
        if not urls:
            return []
        from img2dataset.downloader import Downloader

        rows: list[_Fetched] = [
            {"status": schema.FAILED_TO_DOWNLOAD, "error_message": _LOST} for _ in urls
        ]
        with tempfile.TemporaryDirectory(prefix="capfilt-") as folder:
            shard_file = str(Path(folder) / "shard.feather")
            _write_feather(urls, shard_file)
            downloader = Downloader(
                sample_writer_class=_collector(rows),
                resizer=resizer,
                thread_count=self.threads,
                save_caption=False,
                extract_exif=True,
                output_folder=folder,
                column_list=["url"],
                timeout=self.timeout,
                number_sample_per_shard=len(urls),
                oom_shard_count=1,
                compute_hash="sha256",
                verify_hash_type=None,
                encode_format=self.resize.encode_format,
                retries=0,
                user_agent_token=self.user_agent_token,
                disallowed_header_directives=list(self.disallowed_header_directives) or None,
            )
            downloader.download_shard((0, shard_file))
        return rows


def can_pass(error_message: str | None) -> bool:
    """Say whether a failed download may succeed later: time-outs, 5xx, 429, connection errors."""
    return error_message is not None and _PASSING.search(error_message) is not None


def _failure(status: str, message: str | None) -> str | None:
    """Return the kind of a failure, as far as img2dataset's words tell it."""
    if status not in {schema.FAILED_TO_DOWNLOAD, schema.FAILED_TO_RESIZE}:
        return None if status == schema.SUCCESS else status
    if status == schema.FAILED_TO_RESIZE:
        return "not_an_image"
    if found := re.search(r"HTTP Error (\d{3})", message or ""):
        return http_failure(int(found[1]))
    words = {"timed out": "timeout", "Connection refused": "refused", "public": "private_address"}
    return next((kind for word, kind in words.items() if word in (message or "")), None)


def make_resizer(resize: Resize) -> Any:  # img2dataset has no types
    """Build img2dataset's resizer. Sets what its dependencies would otherwise ask the web for."""
    quiet_dependencies()
    from img2dataset.resizer import Resizer

    return Resizer(
        image_size=resize.image_size,
        resize_mode=resize.resize_mode,
        resize_only_if_bigger=resize.resize_only_if_bigger,
        encode_format=resize.encode_format,
        encode_quality=resize.encode_quality,
        skip_reencode=resize.skip_reencode,
        min_image_size=resize.min_image_size,
        max_image_area=resize.max_image_area,
        max_aspect_ratio=resize.max_aspect_ratio,
    )


def quiet_dependencies() -> None:
    """Keep what img2dataset imports off the network, quiet, and out of the temporary folder."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(_MAX_PIXELS))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
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


def _ingest(ref: str, resizer: Any) -> _Fetched:  # img2dataset's resizer
    from capfilt.inputs import read_image

    try:
        data = read_image(ref)
    except (InputError, OSError) as error:
        return {"status": schema.FAILED_TO_DOWNLOAD, "error_message": _reason(str(error))}
    image, width, height, original_width, original_height, fault = resizer(io.BytesIO(data))
    if fault is not None:
        return {"status": schema.FAILED_TO_RESIZE, "error_message": _reason(fault)}
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


def _reason(message: str | None) -> str:
    """Return a failure's message, whole characters only: a server can put anything into it."""
    text = (message or "failed without a message")[:_LONGEST_REASON]
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_feather(urls: list[str], path: str) -> None:
    table = pa.table({"url": urls})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _collector(rows: list[_Fetched]) -> Callable[..., object]:
    """Return a sample writer class for img2dataset that puts each row at its own place."""

    class Collector:
        def __init__(self, *_: object) -> None:
            pass

        def write(self, image: bytes | None, key: str, _: object, meta: dict[str, Any]) -> None:
            row = {name: meta.get(name) for name in schema.DOWNLOAD.names}
            row["image"] = image
            row["image_bytes"] = None if image is None else len(image)
            if image is None:
                row["error_message"] = _reason(meta["error_message"])
            rows[int(key)] = row

        def close(self) -> None:
            pass

    return Collector
