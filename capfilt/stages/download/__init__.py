"""The download stage: pictures from the web, by img2dataset over a guarded door, or from files."""

from capfilt.stages.download.resizer import Resize, ResizeMode
from capfilt.stages.download.stage import Download

__all__ = ["Download", "Resize", "ResizeMode"]
