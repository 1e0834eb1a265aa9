"""The stages: each reads some columns of a shard and adds new ones for the same rows."""
