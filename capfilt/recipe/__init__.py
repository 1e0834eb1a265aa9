"""What a round is, frozen: its stages, its options, and the file that a user writes."""
