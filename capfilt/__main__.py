"""`python -m capfilt` is `capfilt`."""

from capfilt.cli import main

main()
