"""The resizer in a process of its own, so that a picture that ends its decoder costs one row.

A native crash, or the kernel's out-of-memory killer, takes the decoder and not the download: the
picture is known, everything fetched is kept, and the next picture gets a new decoder. One process
serves a whole pass; a picture goes to it and back through pipes.

    python -m capfilt.stages.download.decoder '{"image_size": 384, …}'     is that process
"""

import contextlib
import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import capfilt
from capfilt.errors import WorkerError, ended
from capfilt.pixels import PEAK_BYTES_PER_PIXEL
from capfilt.process.signals import held, leave_to_parent
from capfilt.stages.download.resizer import Resize, Resized, Resizer, Stream

_TRIES: Final = 2  # a decoder that dies of something else than this picture dies once
_LENGTH: Final = struct.Struct("<Q")
_SHORTAGE: Final = "out of memory"  # no reason of a picture: those begin with a kind


class _Died(Exception):
    """The decoder's process has ended; the message says how."""


class DecoderProcess:
    """What `Resizer` is, in a process of its own: started when first needed, and after a crash."""

    def __init__(self, resize: Resize) -> None:
        self._resize = resize
        self._process: subprocess.Popen[bytes] | None = None
        self._fault: WorkerError | None = None

    def __call__(self, img_stream: Stream, blurring_bbox_list: None = None) -> Resized:
        """Return what img2dataset's resizer returns; a reason of `crashed_decoder` for a crash."""
        img_stream.seek(0)
        data = img_stream.read()
        death = ""
        for _ in range(_TRIES if self._fault is None else 0):
            try:
                answer = self._asked(data)
            except _Died as died:
                death = str(died)
            except WorkerError as error:
                self._fault = error
            else:
                if answer[-1] == _SHORTAGE:
                    self._fault = _shortage()
                return answer
        return None, None, None, None, None, f"crashed_decoder: {death}"

    def check(self) -> None:
        """Raise what is this machine's fault, and must not be booked as a picture's.

        img2dataset passes over exceptions, so it is asked for when a shard's pictures are there.

        Raises:
            WorkerError: a picture within the limits did not fit into the memory, or no decoder
                can be started.
        """
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """End the process, which waits for pictures."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(BrokenPipeError):
                process.communicate()

    def _asked(self, data: bytes) -> Resized:
        process = self._process = self._process or _started(self._resize)
        try:
            _send(_pipe(process.stdin), data)
            head = json.loads(_received(_pipe(process.stdout)))
            image = _received(_pipe(process.stdout))
        except (BrokenPipeError, EOFError) as error:
            self._process = None
            _pipe(process.stdout).close()
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).close()
            raise _Died(ended(process.wait())) from error
        width, height, original_width, original_height, reason = head
        found = image if reason is None else None
        return found, width, height, original_width, original_height, reason


def _shortage() -> WorkerError:
    return WorkerError(
        f"not enough memory to decode a picture within the limits (that takes up to "
        f"{PEAK_BYTES_PER_PIXEL} bytes a pixel). Give fewer --workers or more memory and "
        "run the same command again; finished shards are kept"
    )


@contextlib.contextmanager
def decoder_process(resize: Resize) -> Iterator[DecoderProcess]:
    """Yield a decoder, and end its process at the end."""
    decoder = DecoderProcess(resize)
    try:
        yield decoder
    finally:
        decoder.close()


def _started(resize: Resize) -> "subprocess.Popen[bytes]":
    """Start a decoder and wait until it is ready.

    Raises:
        WorkerError: it does not start at all.
    """
    command = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(resize))]
    here = str(Path(capfilt.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with held():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where native decoders put their complaints
            env={**os.environ, "PYTHONPATH": paths},
        )
    try:
        _received(_pipe(process.stdout))
    except EOFError as error:
        _pipe(process.stdout).close()
        _pipe(process.stdin).close()
        raise WorkerError(
            f"the decoder of pictures does not start ({ended(process.wait())}); "
            f"`{sys.executable} -m {__name__} '{{}}' < /dev/null` says why"
        ) from error
    return process


def _pipe(pipe: "IO[bytes] | None") -> "IO[bytes]":
    if pipe is None:
        raise ValueError("no pipe to the decoder")
    return pipe


def _send(pipe: "IO[bytes]", data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _received(pipe: "IO[bytes]") -> bytes:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


# --- in the decoder's process


def _serve(resizer: Resizer, requests: "IO[bytes]", replies: "IO[bytes]") -> None:
    import io

    _send(replies, b"ready")
    while True:
        try:
            data = _received(requests)
        except EOFError:
            return
        answer: Any
        try:
            answer = resizer(io.BytesIO(data))
        except MemoryError:
            answer = (None, None, None, None, None, _SHORTAGE)
        _send(replies, json.dumps(answer[1:]).encode())
        _send(replies, answer[0] or b"")


def _main() -> None:
    """Answer pictures until standard input ends. What decoders print goes nowhere."""
    leave_to_parent()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import cv2

    cv2.setNumThreads(1)
    _serve(Resizer(Resize(**json.loads(sys.argv[1]))), sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main()
