"""The experiments behind the figures in docs/, and the training of the embedded models."""
