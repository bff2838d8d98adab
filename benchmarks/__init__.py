"""Benchmarks. Each module prints one JSON line; the ratios in a line are measured in one run."""
