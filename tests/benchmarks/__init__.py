"""Benchmarks of the pipeline (`python -m tests.benchmarks`) and of the models (`….models`)."""
