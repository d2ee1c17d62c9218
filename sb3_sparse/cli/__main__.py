"""``python -m sb3_sparse.cli``, the same as ``sb3-sparse``."""

from sb3_sparse.cli.main import main

main()
