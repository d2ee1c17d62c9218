"""Measurements: ratios taken interleaved in one process, medians, threads stated."""
