"""Training MED, captioners and filters on exported shards."""
