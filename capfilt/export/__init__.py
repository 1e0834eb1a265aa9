"""Writing the cleaned dataset: Parquet shards in the Hugging Face layout, card, manifest."""

from capfilt.export.config import COLUMNS, ExportConfig, Provenance
from capfilt.export.dataset import Manifest, export_dataset
from capfilt.export.place import load_manifest
from capfilt.export.verify import ExportProblem, verify_export

__all__ = [
    "COLUMNS",
    "ExportConfig",
    "ExportProblem",
    "Manifest",
    "Provenance",
    "export_dataset",
    "load_manifest",
    "verify_export",
]
