"""MED, its momentum copy and its losses."""
