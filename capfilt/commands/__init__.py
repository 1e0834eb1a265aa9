"""What the verbs do: a library that the command line and the rounds call."""

from capfilt.commands.hardware import Hardware

__all__ = ["Hardware"]
