"""The simulated web: scenes, noisy alt-text, a loopback server, the embedded models."""
