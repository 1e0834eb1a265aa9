"""What tests ask of places that only a local one has."""

from pathlib import Path

from capfilt.store.location import Location


def local(place: Location) -> Path:
    """Return a place that is known to lie on this machine as a path."""
    assert isinstance(place, Path)
    return place
