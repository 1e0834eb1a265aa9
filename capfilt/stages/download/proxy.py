"""Proxies: which one an address goes through, and what the user is told of it.

A proxy resolves names itself, so the promise to reach public addresses alone is then kept by
whoever runs the proxy; only addresses that are written as numbers are still looked at here.
"""

import base64
import ipaddress
import os
import urllib.request
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from capfilt.errors import InputError
from capfilt.stages.download.faults import Failed, as_failed

NONE: Final = "none"
ENV: Final = "env"
_DEFAULT_PORT: Final = 80
_SCHEMES: Final = ("http", "https")
_VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True, repr=False)
class Proxy:
    """One HTTP proxy. `shown` is all of it that is ever printed: no credentials."""

    host: str
    port: int
    credentials: str | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> "Proxy":
        """Read `http://user:password@host:port`; `where` names the option or variable.

        Raises:
            InputError: it is no address of an HTTP proxy. The message holds no credentials.
        """
        url = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in {"http", ""}:
            raise InputError(
                f"{where}: {parts.scheme[:20]} proxies are not spoken to; give an HTTP proxy, "
                "http://host:port, or --proxy none"
            )
        if not host:
            raise InputError(f"{where}: not the address of a proxy; give http://host:port")
        user = parts.username
        named = None if user is None else f"{unquote(user)}:{unquote(parts.password or '')}"
        return cls(host, port or _DEFAULT_PORT, named)

    @property
    def shown(self) -> str:
        """Its address without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def headers(self) -> dict[str, str]:
        """Return what the proxy must be told."""
        if self.credentials is None:
            return {}
        token = base64.b64encode(self.credentials.encode("utf-8")).decode("ascii")
        return {"Proxy-Authorization": f"Basic {token}"}

    def unreachable(self, error: OSError) -> Failed:
        """Return the failure of a proxy that is not there."""
        return self._failed("proxy", error)

    def refused(self, error: Exception) -> Failed:
        """Return the failure of a tunnel: the host's, unless the proxy wants to know us (407)."""
        return self._failed("proxy" if " 407 " in f"{error} " else "proxy_refused", error)

    def _failed(self, failure: str, error: Exception) -> Failed:
        cause = as_failed(error)
        if cause.failure == "machine":
            return cause
        return Failed(failure, f"the proxy {self.shown}: {cause}")

    def __repr__(self) -> str:
        return f"Proxy({self.shown})"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies by scheme, and the hosts that are reached without (as NO_PROXY says)."""

    by_scheme: dict[str, Proxy]
    exceptions: str = ""

    def of(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy for an address, or None where it is reached directly."""
        proxy = self.by_scheme.get(scheme)
        return None if proxy is None or _excepted(host, port, self.exceptions) else proxy


def choose_proxies(choice: str) -> Proxies:
    """Return what `--proxy env|none|URL` says, now.

    Raises:
        InputError: the option or a variable is no address of an HTTP proxy.
    """
    if choice == NONE:
        return Proxies({})
    if choice != ENV:
        if choice.isalpha():
            raise InputError(f"--proxy {choice}: give {ENV}, {NONE}, or http://host:port")
        proxy = Proxy.parse(choice, "--proxy")
        return Proxies(dict.fromkeys(_SCHEMES, proxy))
    found = urllib.request.getproxies_environment()
    chosen: dict[str, Proxy] = {}
    for scheme in _SCHEMES:
        name = scheme if found.get(scheme) else "all"
        if found.get(name):
            chosen[scheme] = Proxy.parse(found[name], f"{name.upper()}_PROXY")
    return Proxies(chosen, found.get("no", ""))


def proxy_notes(choice: str) -> list[str]:
    """Return what a user should know of the proxies of a run, once.

    Raises:
        InputError: as `choose_proxies`.
    """
    proxies = choose_proxies(choice)
    if proxies.by_scheme:
        named = " and ".join(sorted({proxy.shown for proxy in proxies.by_scheme.values()}))
        return [
            f"fetching through the proxy {named}: it resolves the names, so that private addresses "
            "behind them are the proxy's to refuse"
        ]
    there = sorted(x for x, value in os.environ.items() if x.lower() in _VARIABLES and value)
    if choice == NONE and there:
        return [f"{', '.join(there)}: set and not used; --proxy env fetches through the proxy"]
    return ["--proxy env: no proxy is set, so none is used"] if choice == ENV else []


def _excepted(host: str, port: int, exceptions: str) -> bool:
    """Say whether NO_PROXY names a host: as itself, a parent domain, a network, or `*`.

    An entry may have a port, which must then be the address's.
    """
    for entry in (part.strip().lower() for part in exceptions.split(",")):
        if entry == "*":
            return True
        name, at = _host_and_port(entry)
        if name and at in {None, port} and _is_of(host.lower().removesuffix("."), name):
            return True
    return False


def _host_and_port(entry: str) -> tuple[str, int | None]:
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return entry.strip("[]"), None


def _is_of(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        domain = entry.removeprefix("*").removeprefix(".")
        return host == domain or host.endswith(f".{domain}")
