"""Which texts are kept: policies over stored scores."""
