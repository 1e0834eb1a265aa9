"""What a user should know before rows are fetched from this machine."""

from capfilt.stages.download.limits import shortage_hint
from capfilt.stages.download.proxy import proxy_notes
from capfilt.stages.download.stage import Download


def fetch_notes(fetch: Download) -> list[str]:
    """Return a sentence each on proxies, used or not, and on too few open files.

    Raises:
        InputError: a proxy variable that is to be used is no address of an HTTP proxy.
    """
    hint = shortage_hint(fetch.threads)
    return [*proxy_notes(fetch.proxy), *([hint] if hint else [])]
