"""Benchmarks: `python -m capfilt.bench` for the pipeline, `capfilt.bench.models` for models."""
