"""What holds masks in a network: layers, their invariants, the optimizer's state."""
