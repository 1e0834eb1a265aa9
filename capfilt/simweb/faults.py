"""What can go wrong with an address, named once for the generator and for the server."""

from enum import StrEnum


class Fault(StrEnum):
    """How the simulated web answers a request for one address."""

    NONE = "none"
    # A status and no picture.
    NOT_FOUND = "not_found"  # 404
    GONE = "gone"  # 410
    FORBIDDEN = "forbidden"  # 403
    TOO_MANY = "too_many"  # 429, with Retry-After
    FLAKY = "flaky"  # 500 for the first requests, then fine
    BROKEN_SERVER = "broken_server"  # 503 for ever
    # Redirects.
    REDIRECT = "redirect"  # one hop to the same server, then fine
    REDIRECT_LOOP = "redirect_loop"  # two addresses that point at each other
    REDIRECT_CHAIN = "redirect_chain"  # always one more, never the same address twice
    REDIRECT_ELSEWHERE = "redirect_elsewhere"  # to another host
    REDIRECT_FILE = "redirect_file"  # to file:
    REDIRECT_METADATA = "redirect_metadata"  # to a cloud's link-local metadata service
    # The right bytes, badly delivered.
    SLOW = "slow"  # a pause before the answer
    DRIP = "drip"  # a few bytes at a time: no single read ever times out
    TRUNCATED = "truncated"  # the connection closes before Content-Length is reached
    RESET = "reset"  # the connection is reset in place of an answer
    REFUSED = "refused"  # a port where nobody listens: the server never hears of it
    TEXT_PLAIN = "text_plain"  # a good picture called text/plain
    NO_AI = "no_ai"  # a good picture with X-Robots-Tag: noai
    # The wrong bytes.
    HTML = "html"  # an HTML page behind a picture's address
    EMPTY = "empty"  # zero bytes, status 200
    BROKEN_JPEG = "broken_jpeg"  # cut inside its header: nothing can be decoded
    HALF_JPEG = "half_jpeg"  # cut inside its pixels: lenient decoders show half a picture
    HUGE = "huge"  # a picture and then zeros; Content-Length says how many
    ENDLESS = "endless"  # the same without Content-Length


# With these a patient client that follows one redirect gets the whole picture at the first try.
HARMLESS = frozenset({Fault.NONE, Fault.REDIRECT, Fault.SLOW, Fault.DRIP, Fault.TEXT_PLAIN})

# With these a later try may succeed as far as a client can know (time-outs, 5xx, 429,
# connection errors); with FLAKY it does.
PASSING = frozenset(
    {
        Fault.FLAKY,
        Fault.BROKEN_SERVER,
        Fault.TOO_MANY,
        Fault.SLOW,
        Fault.DRIP,
        Fault.TRUNCATED,
        Fault.RESET,
        Fault.REFUSED,
    }
)
