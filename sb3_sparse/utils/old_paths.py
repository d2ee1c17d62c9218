"""
Old addresses. Before the package had rooms its modules lay flat in one folder; saved models, replay buffers and scripts name
classes by those paths. They are kept here, in one table, and nowhere else.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

#: What a flat module became: old name -> where its definitions are now, both below ``sb3_sparse``.
MOVED: dict[str, tuple[str, ...]] = {
    "acceleration": ("policies.acceleration",),
    "accounting": ("analysis.flops",),
    "binding": (
        "nn.updater",
        "nn.updater_state",
    ),
    "checks": ("utils.checks",),
    "convert": (
        "conversion.saved",
        "conversion.to_stock",
    ),
    "discovery": ("policies.structure",),
    "distributions": ("masks.distributions",),
    "encodings": ("masks.encodings",),
    "engine.mirror": ("engine.survivors",),
    "engine.optimizer": ("engine.adam",),
    "engine.target": (
        "engine.polyak",
        "engine.parameter",
        "engine.survivors",
    ),
    "environments": ("zoo.environments",),
    "figures": ("utils.figures",),
    "files": ("utils.files",),
    "finetune": (
        "cli.prune",
        "conversion.loading",
        "zoo.runs",
    ),
    "gradient_steps": ("analysis.gradient_step",),
    "gradual": ("callbacks.gradual_pruning",),
    "growth": ("callbacks.set_rigl",),
    "hyperparameter": ("utils.command_line",),
    "integer": ("quantization.integer",),
    "integer_policy": ("analysis.integer_forward",),
    "layers": ("nn.layers",),
    "loading": ("conversion.loading",),
    "magnitude": ("masks.magnitude",),
    "moments": ("nn.optimizer_state",),
    "patterns": ("masks.patterns",),
    "plan": (
        "masks.plan",
        "masks.config",
    ),
    "post_training": (
        "conversion.quantize",
        "conversion.calibration",
    ),
    "presets": ("zoo.presets",),
    "prune": (
        "conversion.sparsify",
        "policies.algorithms",
        "policies.base",
    ),
    "quantization_aware": ("callbacks.quantization_aware",),
    "quantization_plan": ("policies.quantized_layers",),
    "quantizer": ("quantization.fake_quantizer",),
    "refresh": ("callbacks.mask_refresh",),
    "replay": ("callbacks.replay",),
    "report": ("analysis.report",),
    "schedules": ("masks.schedules",),
    "shrink": ("conversion.shrink",),
    "sparsifier": ("nn.sparsifier",),
    "topology": (
        "callbacks.base",
        "callbacks.clock",
        "callbacks.events",
    ),
    "tuning.files": ("zoo.sections",),
    "tuning.question": ("tuning.sparsest",),
    "tuning.tune": ("tuning.front",),
    "units": ("analysis.dead_units",),
    "updaters": ("masks.drop_and_grow",),
}


class _Moved(ModuleType):
    """A module that is not there any more: looks its names up where they are now, when somebody asks."""

    def __init__(self, name: str, places: tuple[str, ...]) -> None:
        super().__init__(name, f"Moved to {', '.join(places)}.")
        self.__dict__["_places"] = places

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in self.__dict__["_places"]:
                module = import_module(place)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def keep_old_paths() -> None:
    """
    Let ``import sb3_sparse.<old name>`` and pickles that name such a module go on working. The entries are made by hand
    because importing a submodule would set an attribute of the package, where ``shrink`` is a function.
    """
    for old, places in MOVED.items():
        name = f"sb3_sparse.{old}"
        sys.modules.setdefault(name, _Moved(name, tuple(f"sb3_sparse.{place}" for place in places)))
