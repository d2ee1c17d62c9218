"""
Which way to write down a layer's mask takes the fewest bytes. The encodings themselves stand in
:mod:`sb3_sparse_runtime.encodings`, where deployed policies are read without torch.
"""

from __future__ import annotations

import numpy as np

from sb3_sparse.masks.patterns import Block, NofM, Pattern
from sb3_sparse_runtime.encodings import (
    Bitmap,
    Blocks,
    Dense,
    Encoding,
    Gaps,
    Mask,
    Positions,
    Rice,
    Rows,
    value_bytes,
)

__all__ = [
    "Bitmap",
    "Blocks",
    "Dense",
    "Encoding",
    "Gaps",
    "Mask",
    "Positions",
    "Rice",
    "Rows",
    "candidates",
    "smallest_encoding",
    "value_bytes",
]


def candidates(mask: Mask, pattern: Pattern) -> list[Encoding]:
    """
    The encodings that come into question for a mask.

    :param mask: Bool matrix.
    :param pattern: Its pattern.
    :return: The encodings that may hold it, simplest first.
    """
    encodings: list[Encoding] = [Dense(), Bitmap(), Rows(), Gaps(), Rice.best(mask)]
    if isinstance(pattern, NofM):
        per_row = np.add.reduceat(mask[:1].astype(np.int64), np.arange(0, mask.shape[1], pattern.m), axis=1)
        encodings.append(Positions(int(per_row.max()), pattern.m))
    elif isinstance(pattern, Block):
        encodings.append(Blocks(pattern.rows, pattern.columns))
    return encodings


def smallest_encoding(mask: Mask, pattern: Pattern, bits: int = 32) -> tuple[Encoding, int]:
    """
    Choose by arithmetic on the mask itself.

    :param mask: Bool matrix.
    :param pattern: Its pattern.
    :param bits: Bits per value; the fewer they are, the sooner storing zeros costs less than indices.
    :return: The encoding with the fewest bytes for values and indices together (of equal ones the simplest), and the bytes of
        its indices.
    """
    n_active = int(mask.sum())
    sized: list[tuple[int, int, Encoding, int]] = []
    for encoding in candidates(mask, pattern):
        size = encoding.size(mask)
        if size is not None:
            values = value_bytes(mask.size if encoding.stores_all else n_active, bits)
            sized.append((values + size, len(sized), encoding, size))
    _, _, encoding, size = min(sized, key=lambda item: item[:2])
    return encoding, size
