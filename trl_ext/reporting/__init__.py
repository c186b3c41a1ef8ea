"""A page about runs: what was logged, what it took, what was written, and what is wrong with it."""
