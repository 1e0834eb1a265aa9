"""The simulated web: deterministic scenes, noisy alt-text, a loopback server, the embedded models."""
