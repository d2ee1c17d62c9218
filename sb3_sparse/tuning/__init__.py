"""Tuning with Optuna: what may be searched, and how a sample becomes an rl-zoo3 configuration."""
