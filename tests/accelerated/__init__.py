"""The whole train() as a few native calls."""
