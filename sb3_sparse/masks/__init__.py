"""Which masks are possible, and which are chosen. Pure functions of tensors; no network."""
