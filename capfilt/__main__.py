"""`python -m capfilt` is `capfilt`."""

from capfilt.cli.app import main

main()
