"""Near-duplicate images: their hashes, the search, and which copy wins."""
