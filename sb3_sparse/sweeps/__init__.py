"""Sweeps: a grid of methods, algorithms, environments, sparsities and seeds becomes trainings, and their results a report."""
