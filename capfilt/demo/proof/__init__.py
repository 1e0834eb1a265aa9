"""The experiment: does CapFilt help here as the paper says? `python -m capfilt.demo.proof`."""
