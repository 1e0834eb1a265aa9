"""Where files lie: a local path, or an address in a bucket; both are used by the same verbs."""
