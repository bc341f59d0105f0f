"""Measurements: each compares in one run and reports ratios; acceptance runs write to ``benchmarks/results/``."""
