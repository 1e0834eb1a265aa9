"""Writing the cleaned dataset: Parquet shards, dataset card, manifest."""
