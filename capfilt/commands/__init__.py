"""What the verbs do: a library that the command line and the rounds call."""
