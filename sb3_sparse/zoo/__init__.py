"""rl-zoo3: presets, environments, run folders."""
