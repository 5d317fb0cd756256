"""Timing that can be compared: the harness of `benchmarks/`, its result files, and `r2kd bench`."""
