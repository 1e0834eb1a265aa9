"""Does CapFilt help here as the paper says? `python -m pipelines.experiments.proof`."""
