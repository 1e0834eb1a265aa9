"""How good models and a clean set are: retrieval, captions, and the filter where truth is known."""
