"""Image-text pairs on their way into a training step."""
