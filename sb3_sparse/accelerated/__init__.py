"""The whole ``train()`` of an algorithm as a few native calls: asked for by :func:`accelerate`, never by default."""

from sb3_sparse.accelerated.accelerate import accelerate

__all__ = ["accelerate"]
