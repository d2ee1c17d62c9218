"""Checks, files, figures: nothing about sparsity."""
