"""The decision as one graph; packed files, ONNX, C and Cortex-M each read only that graph."""

from sb3_sparse.export.exporter import CheckFailedError, Exported, export

__all__ = ["CheckFailedError", "Exported", "export"]
