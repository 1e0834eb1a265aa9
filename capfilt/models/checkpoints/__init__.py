"""From what a user calls a model to a folder of files with a digest. Never imports torch."""

from capfilt.models.checkpoints.resolving import EMBEDDED, EMBEDDED_FOLDER, resolve_model
from capfilt.models.checkpoints.weights import share_weights, weight_bytes

__all__ = ["EMBEDDED", "EMBEDDED_FOLDER", "resolve_model", "share_weights", "weight_bytes"]
