"""img2dataset's downloader over our opener: its threads fetch, hash and hand pictures on.

It asks its function `download_image_with_retry` for one row after the other. That function is
replaced here while a shard is fetched: it takes whichever row's turn it is (see hosts.py), and has
img2dataset's own `download_image` fetch it, through `urllib.request.urlopen` and so our opener.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Semaphore
from typing import Any, Final

import pyarrow as pa

from capfilt.errors import MachineError
from capfilt.inputs import urls as addresses
from capfilt.stages.download.faults import Reason, shortage
from capfilt.stages.download.health import Health
from capfilt.stages.download.hosts import Job, Schedule
from capfilt.stages.download.opener import Opener, Trip

_PAUSING: Final = frozenset({"http_429", "http_503"})
_Outcome = tuple[int, io.BytesIO | None, str | None]  # img2dataset's: key, body, error


@dataclass(frozen=True, slots=True)
class Fetcher:
    """How the rows of a shard are fetched. Times in seconds."""

    opener: Opener
    health: Health
    threads: int
    host_requests: int
    timeout: float
    total_timeout: float

    def run(self, urls: list[str], writer: Callable[..., object], resizer: Any, **how: Any) -> None:
        """Fetch `urls`; `writer`, `resizer` and `how` are what img2dataset's Downloader takes.

        Raises:
            MachineError: this machine cannot fetch; what the writer was given is worth nothing.
        """
        try:
            self._run(urls, writer, resizer, how)
        except (OSError, RuntimeError, MemoryError, AttributeError) as error:
            # AttributeError: a ThreadPool that could not start its threads fails once more.
            lacking = shortage(error)
            if lacking is None:
                raise
            raise MachineError(
                f"this machine cannot fetch: {lacking}. Nothing of this shard was written; try "
                "fewer --threads or --workers, and run the same command again to go on"
            ) from error
        self.health.end_shard()

    def _run(
        self, urls: list[str], writer: Callable[..., object], resizer: Any, how: dict[str, Any]
    ) -> None:
        from img2dataset.downloader import Downloader

        schedule = Schedule(map(_job, range(len(urls)), urls), self.host_requests)
        with (
            tempfile.TemporaryDirectory(prefix="capfilt-") as folder,
            _seams(lambda *_, **options: self._next(schedule, options), len(urls)),
        ):
            shard_file = str(Path(folder) / "shard.feather")
            _write_feather(urls, shard_file)
            downloader = Downloader(
                sample_writer_class=writer,
                resizer=resizer,
                thread_count=min(self.threads, len(urls)),
                save_caption=False,
                extract_exif=True,
                output_folder=folder,
                column_list=["url"],
                timeout=self.timeout,
                number_sample_per_shard=len(urls),
                oom_shard_count=1,
                verify_hash_type=None,
                retries=0,
                disallowed_header_directives=None,  # robots.py reads them
                **how,
            )
            downloader.download_shard((0, shard_file))

    def _next(self, schedule: Schedule, options: dict[str, Any]) -> _Outcome:
        """Bring one job to its end, whichever comes first; its host may pause it before."""
        while True:
            job = schedule.take()
            body, error = self._fetch(schedule, job, options)
            wait = error.retry_after if error is not None and error.failure in _PAUSING else None
            if wait is not None and self.health.fault is None and schedule.postpone(job, wait):
                continue
            schedule.done(job)
            return job.place, body, error

    def _fetch(
        self, schedule: Schedule, job: Job, options: dict[str, Any]
    ) -> tuple[io.BytesIO | None, Reason | None]:
        if self.health.fault is not None:
            return None, Reason("machine", "not asked for")
        from img2dataset.downloader import download_image

        if job.end is None:
            job.end = time.monotonic() + self.total_timeout
        trip = Trip(job.end, lambda host: schedule.move(job, host))
        with self.opener.on_trip(trip):
            _, body, error = download_image(
                (job.place, job.url),
                options["timeout"],
                options["user_agent_token"],
                options["disallowed_header_directives"],
            )
        if error is not None and not isinstance(error, Reason):
            error = Reason("machine", error or "out of memory")  # raised outside the opener
        self.health.note(None if error is None else error.failure)
        return body, error


def _job(place: int, url: str) -> Job:
    try:
        normal = addresses.normalise(url)
        return Job(place, normal, addresses.host_of(normal))
    except ValueError:  # a shard that an older version cut; the opener says what is wrong
        return Job(place, url, "")


@contextlib.contextmanager
def _seams(replacement: Callable[..., _Outcome], rows: int) -> Iterator[None]:
    """Replace what img2dataset's downloader has no seam for: see above, and `_Pool`."""
    from img2dataset import downloader

    held: list[Semaphore] = []

    def semaphore(value: int) -> Semaphore:
        held.append(Semaphore(value))
        return held[-1]

    ours = {
        "download_image_with_retry": replacement,
        "Semaphore": semaphore,
        "ThreadPool": lambda threads: _Pool(threads, held, rows),
    }
    before = {name: getattr(downloader, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(downloader, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(downloader, name, value)


class _Pool(ThreadPool):
    """A pool that can be left at any moment.

    img2dataset's waits in its own feeding thread for rows to be handled, also when nobody will
    handle one any more: Ctrl-C, and any error, would hang in it for ever.
    """

    def __init__(self, threads: int, held: list[Semaphore], rows: int) -> None:
        super().__init__(threads)
        self._held, self._rows = held, rows

    def terminate(self) -> None:
        for semaphore in self._held:
            semaphore.release(self._rows)
        super().terminate()


def _write_feather(urls: list[str], path: str) -> None:
    table = pa.table({"url": urls})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
