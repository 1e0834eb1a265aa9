"""Benchmarks: `python -m capfilt.bench` of the pipeline, `capfilt.bench.models` of the models."""
