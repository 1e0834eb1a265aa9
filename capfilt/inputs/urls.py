"""Addresses as browsers read them: the URL standard (https://url.spec.whatwg.org), by Ada.

Lists from the web hold addresses as pages had them: with blanks and letters that are not ASCII,
hosts in any script, backslashes, line ends, `&amp;`. A browser repairs all of these in one way, so
two spellings of one address are one address. What no browser takes for an absolute address, such
as a host without a scheme, is not guessed at: it may as well be a path.
"""

import functools
import re
from typing import Final
from urllib.parse import unquote, urlsplit

import ada_url
import pyarrow as pa
import pyarrow.compute as pc

# Only the ampersand: `&copy=1` in an address is a parameter and no ©.
_AMPERSAND: Final = re.compile(r"&(?:(?:amp|#0*38|#x0*26);)+", re.IGNORECASE)
_WITHOUT_SCHEME: Final = re.compile(r"[\t\n\r]*[/\\][\t\n\r]*[/\\]")
# What the URL standard leaves as it is, as most addresses are: a plain host whose last label is no
# number, a path without dot segments, and nothing that is escaped, unescaped or cut off.
_PLAIN: Final = re.compile(
    r"https?://(?=[a-z0-9.-]{1,63}/)(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)+[a-z]{2,}"
    r"(?!.*(?:/\.|%2[eE]|&(?i:amp)))/[A-Za-z0-9._~/+:@!$*(),;=%-]*"
    r"(?:\?[A-Za-z0-9._~/+:@!$*(),;=%&-]*)?"
)
# The same for Arrow, whose patterns (RE2) look neither ahead nor at two things at once.
_PLAIN_ALL: Final = (
    r"^https?://(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)+[a-z]{2,}/[A-Za-z0-9._~/+:@!$*(),;=%-]*"
    r"(?:\?[A-Za-z0-9._~/+:@!$*(),;=%&-]*)?$"
)
_PLAIN_HOST: Final = r"^https?://[a-z0-9.-]{1,63}/"
_PLAIN_NEVER: Final = r"/\.|%2[eE]|&(?i:amp)"
_WEB: Final = frozenset({"http:", "https:"})
# RFC 1035, 2.3.4: no name server is asked for more.
_LONGEST_LABEL: Final = 63
_LONGEST_NAME: Final = 253


@functools.lru_cache(maxsize=16)  # cutting asks twice for each row
def normalise(url: str) -> str:
    """Return the address that is fetched for `url`: ASCII, absolute, without a fragment.

    `//host/path` is read as http, as the page of a list without pages.

    Raises:
        ValueError: it is no address of the web; the message says why.
    """
    text = url.strip()
    if _PLAIN.fullmatch(text):
        return text
    text = _AMPERSAND.sub("&", _scalar(text))
    if _WITHOUT_SCHEME.match(text):
        text = "http:" + text
    return _checked(text)


def plain(urls: pa.Array) -> pa.Array:
    """Say of many texts which of them `normalise` leaves as they are without a closer look."""
    never = pc.match_substring_regex(urls, _PLAIN_NEVER)
    host = pc.match_substring_regex(urls, _PLAIN_HOST)
    found = pc.and_(pc.match_substring_regex(urls, _PLAIN_ALL), pc.and_not(host, never))
    return found.fill_null(False)


def join(base: str, location: str) -> str:
    """Return the address that a redirect from `base` leads to, by the same rules.

    Raises:
        ValueError: it is no address of the web.
    """
    return _checked(_scalar(location), base)


def fault_of(url: str | None) -> str | None:
    """Say why `url` cannot be fetched, or None where it can."""
    if not url or not url.strip():
        return "no address"
    try:
        normalise(url)
    except ValueError as error:
        return _old_words(url.strip()) or str(error)
    return None


def host_of(url: str) -> str:
    """Return the host of a normalised address, without the brackets of IPv6."""
    host: str = ada_url.URL(url).hostname
    return host.strip("[]")


def credentials_of(url: str) -> tuple[str, str] | None:
    """Return user and password of an address that has them, or None."""
    parsed = ada_url.URL(url)
    if not (parsed.username or parsed.password):
        return None
    return unquote(parsed.username), unquote(parsed.password)


def _checked(text: str, base: str | None = None) -> str:
    try:
        parsed = ada_url.URL(text, base)
    except ValueError:
        raise ValueError("not an address: the URL standard has no reading of it") from None
    if parsed.protocol not in _WEB:
        raise ValueError(f"scheme {parsed.protocol[:-1][:20]!r} is not http or https")
    host = parsed.hostname.removesuffix(".")
    if not host:
        raise ValueError("address without a host")
    labels = host.split(".")
    if len(host) > _LONGEST_NAME or any(not 0 < len(x) <= _LONGEST_LABEL for x in labels):
        raise ValueError("not an address: a part of the host's name is empty or too long")
    href: str = parsed.href
    return href.partition("#")[0]


def _old_words(text: str) -> str | None:
    """Return what the first versions said of `text`: shards are named by these reasons too."""
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError as error:
        return f"not an address: {error}"
    if parts.scheme.lower() not in {"http", "https"}:
        return f"scheme {parts.scheme[:20]!r} is not http or https"
    return None if host else "address without a host"


def _scalar(text: str) -> str:
    """Return `text` with lone surrogates replaced, as the standard takes its input."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
