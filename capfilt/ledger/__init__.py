"""The run folder: the only code that writes in it, and the input as it was cut."""
