"""Benchmarks: `python -m tests.benchmarks` of the pipeline, `tests.benchmarks.models` of the models."""
