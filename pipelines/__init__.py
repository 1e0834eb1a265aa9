"""Round definitions to copy and edit, and the experiments."""
