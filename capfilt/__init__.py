"""Bootstraps clean image-text training data from noisy web pairs, by the CapFilt method of BLIP."""

__version__ = "0.1.0"
