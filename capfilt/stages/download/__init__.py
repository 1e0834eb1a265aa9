"""The download stage: pictures from the web, by img2dataset over a guarded door, or from files."""

from capfilt.stages.download.stage import Download, Resize, ResizeMode, make_resizer

__all__ = ["Download", "Resize", "ResizeMode", "make_resizer"]
