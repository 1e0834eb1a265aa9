"""Why a picture could not be had: a closed set of stable words, counted wherever people look.

A row's `failure` is one of these names, or `http_` and a status code. Its `error_message` says
more, and may hold anything that a server said; nothing is ever decided by reading that.
"""

import re
from dataclasses import dataclass
from typing import Final

_HTTP: Final = re.compile(r"http_(\d{3})")
# 408 and 425: asked too late or too early; 429: too often. All of 5xx is the server's own trouble.
_PASSING_CODES: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind: what it means, whether asking again may help, and what the user can do about it."""

    name: str
    meaning: str
    can_pass: bool = False
    remedy: str | None = None


FAILURES: Final[dict[str, Failure]] = {
    failure.name: failure
    for failure in (
        # The address and the way to the server.
        Failure("dns", "the host's name is not known"),
        Failure("dns_unavailable", "the name service gives no answer for the host", can_pass=True),
        Failure("unreachable", "no way to the host", can_pass=True),
        Failure("refused", "the server refuses connections", can_pass=True),
        Failure("reset", "the connection broke", can_pass=True),
        Failure("timeout", "no answer in time", can_pass=True),
        Failure("tls", "no secure connection to the server"),
        Failure("proxy", "the proxy is not there, or refuses us", can_pass=True),
        Failure("proxy_refused", "the proxy makes no connection to the host", can_pass=True),
        Failure(
            "private_address",
            "the host is no public address",
            remedy="capfilt retry --allow-private-hosts",
        ),
        Failure(
            "machine",
            "this machine was short of something (open files, memory, threads, disk)",
            can_pass=True,
            remedy="capfilt retry",
        ),
        # What the server answers.
        Failure("bad_redirect", "redirects that lead nowhere, in a circle, or are too many"),
        Failure("bad_response", "an answer that is no HTTP"),
        Failure("incomplete_body", "the answer ends before its announced length", can_pass=True),
        Failure("too_large", "the answer is longer than the limit"),
        Failure("opted_out", "the server asks not to use the picture (X-Robots-Tag)"),
        # The picture.
        Failure("not_an_image", "no picture format that is known"),
        Failure("truncated_image", "the picture ends in the middle"),
        Failure("corrupt_image", "the picture cannot be decoded"),
        Failure(
            "unsupported_image",
            "a picture format that needs more packages",
            remedy="pip install 'capfilt[images]'",
        ),
        Failure("unsupported_samples", "a type of samples that cannot be shown for certain"),
        Failure("too_many_pixels", "more pixels than the limit"),
        Failure("too_small", "smaller than the minimum size"),
        Failure("extreme_aspect", "longer and narrower than the limit"),
        Failure("crashed_decoder", "the row ended the process that worked on it"),
        # Local pictures.
        Failure("missing_file", "the file is not there, or cannot be read"),
        Failure("changed_file", "the file is not the one that the input named"),
    )
}


def http_failure(code: int) -> str:
    """Return the kind of an HTTP status code, `http_404` for one."""
    return f"http_{code:03d}"


def split_reason(reason: str) -> tuple[str | None, str]:
    """Split a resizer's `kind: words` into both; (None, reason) where it begins with no kind."""
    kind, colon, words = reason.partition(": ")
    return (kind, words) if colon and kind in FAILURES else (None, reason)


def can_pass(failure: str | None) -> bool:
    """Say whether a row that failed so may be had later, so that `capfilt retry` asks again."""
    if failure is None:
        return False
    if match := _HTTP.fullmatch(failure):
        code = int(match[1])
        return code in _PASSING_CODES or code >= 500
    known = FAILURES.get(failure)
    return known is not None and known.can_pass
