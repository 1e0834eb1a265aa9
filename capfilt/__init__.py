"""Bootstraps clean image-text training data from noisy web pairs, by the CapFilt method of BLIP.

The names below are the public ones; each is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from capfilt.commands.hardware import Hardware
    from capfilt.commands.run import run, run_round
    from capfilt.errors import CapfiltError
    from capfilt.export import ExportConfig
    from capfilt.export.formats import ExportFormat
    from capfilt.inputs import InputSpec
    from capfilt.inputs.own import InputReader
    from capfilt.models.checkpoints import resolve_model
    from capfilt.models.recipe import (
        NO_CHECKPOINT,
        Beam,
        FilterRecipe,
        Lengths,
        ModelRef,
        Nucleus,
        ScorerRecipe,
    )
    from capfilt.recipe.options import RoundOptions, build_round
    from capfilt.recipe.round import Round
    from capfilt.rounds.config import Rounds
    from capfilt.stages.caption import Caption
    from capfilt.stages.dedup.barrier import Dedup
    from capfilt.stages.download import Download, Resize
    from capfilt.stages.policies.blip import Select
    from capfilt.stages.policies.own import TextPolicy
    from capfilt.train.plan import PairFolder, TrainPlan

_PLACES: Final = {
    "NO_CHECKPOINT": "capfilt.models.recipe",
    "Beam": "capfilt.models.recipe",
    "CapfiltError": "capfilt.errors",
    "Caption": "capfilt.stages.caption",
    "Dedup": "capfilt.stages.dedup.barrier",
    "Download": "capfilt.stages.download",
    "ExportConfig": "capfilt.export",
    "ExportFormat": "capfilt.export.formats",
    "FilterRecipe": "capfilt.models.recipe",
    "Hardware": "capfilt.commands.hardware",
    "InputReader": "capfilt.inputs.own",
    "InputSpec": "capfilt.inputs",
    "Lengths": "capfilt.models.recipe",
    "ModelRef": "capfilt.models.recipe",
    "Nucleus": "capfilt.models.recipe",
    "PairFolder": "capfilt.train.plan",
    "Resize": "capfilt.stages.download",
    "Round": "capfilt.recipe.round",
    "RoundOptions": "capfilt.recipe.options",
    "Rounds": "capfilt.rounds.config",
    "ScorerRecipe": "capfilt.models.recipe",
    "Select": "capfilt.stages.policies.blip",
    "TextPolicy": "capfilt.stages.policies.own",
    "TrainPlan": "capfilt.train.plan",
    "build_round": "capfilt.recipe.options",
    "resolve_model": "capfilt.models.checkpoints",
    "run": "capfilt.commands.run",
    "run_round": "capfilt.commands.run",
}

__all__ = [
    "NO_CHECKPOINT",
    "Beam",
    "CapfiltError",
    "Caption",
    "Dedup",
    "Download",
    "ExportConfig",
    "ExportFormat",
    "FilterRecipe",
    "Hardware",
    "InputReader",
    "InputSpec",
    "Lengths",
    "ModelRef",
    "Nucleus",
    "PairFolder",
    "Resize",
    "Round",
    "RoundOptions",
    "Rounds",
    "ScorerRecipe",
    "Select",
    "TextPolicy",
    "TrainPlan",
    "__version__",
    "build_round",
    "resolve_model",
    "run",
    "run_round",
]


def __getattr__(name: str) -> Any:  # any public name
    if name not in _PLACES:
        raise AttributeError(f"module 'capfilt' has no attribute {name!r}")
    found = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
