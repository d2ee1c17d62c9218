"""Integer arithmetic as a definition, and its imitation while a network trains."""
