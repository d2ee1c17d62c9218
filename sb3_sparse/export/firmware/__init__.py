"""Files of the test bench for Cortex-M; :mod:`sb3_sparse.export.cortex_m` puts a policy's name into them."""
