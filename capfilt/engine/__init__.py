"""Running a plan to its end, and looking at how far it is."""
