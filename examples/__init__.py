"""Programs on top of trl_ext, and the benchmarks."""
