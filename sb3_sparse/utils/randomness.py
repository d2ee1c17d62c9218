"""Global random streams: whoever only looks at something leaves them as they are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch as th
from torch import nn


def devices_of(module: nn.Module) -> list[th.device]:
    """
    Where a module's tensors are, and so where it may draw random numbers.

    :param module: Any module.
    :return: Its devices, each once.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return list(dict.fromkeys(tensor.device for tensor in tensors))


def devices_in_use() -> list[th.device]:
    """
    Every CUDA device whose random stream has begun. Seeding torch (``th.manual_seed``) seeds them all.

    :return: The devices; none where nothing was done with CUDA so far, whose streams begin where seeding puts them.
    """
    if not (th.cuda.is_available() and th.cuda.is_initialized()):
        return []
    return [th.device("cuda", index) for index in range(th.cuda.device_count())]


@contextmanager
def undisturbed_randomness(devices: Iterable[th.device]) -> Iterator[None]:
    """
    Whatever is drawn from global random streams inside is not missing outside: those of Python and numpy, and torch's on the
    CPU and on the given devices.

    :param devices: Devices on which something may be drawn; the CPU need not be among them.
    """
    by_type: dict[str, list[th.device]] = {}
    for device in devices:
        if device.type not in ("cpu", "meta") and device not in by_type.setdefault(device.type, []):
            by_type[device.type].append(device)
    python, numpy = random.getstate(), np.random.get_state()
    mps = th.mps.get_rng_state() if by_type.pop("mps", None) else None
    try:
        with ExitStack() as stack:
            stack.enter_context(th.random.fork_rng(devices=[]))
            for kind, members in by_type.items():
                stack.enter_context(th.random.fork_rng(devices=members, device_type=kind))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if mps is not None:
            th.mps.set_rng_state(mps)
