"""Finding pictures and texts of evaluation sets among those of a run, and leaving them out."""
