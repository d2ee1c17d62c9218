"""At once: a trained model becomes a sparse, quantized, smaller or stock one."""
