"""The forward pass: fixed shapes, attention, decoding, sampling noise."""
