"""What a configuration is judged by: its return, and what the networks that choose actions cost."""

from __future__ import annotations

from collections.abc import Sequence

RETURN, LATENCY = "return", "latency"
#: With their units, for tables and figures. More return is better, and less of everything else.
OBJECTIVES = {
    RETURN: "return",
    "flops": "FLOPs of an action",
    "bytes": "bytes",
    "parameters": "parameters",
    LATENCY: "latency (µs)",
}


def check_objectives(names: Sequence[str]) -> list[str]:
    """
    Check names of objectives.

    :param names: What the user wants.
    :return: The same, ``"return"`` first.
    :raises ValueError: For an unknown name, one given twice, or if ``"return"`` or everything else is missing.
    """
    names = list(names)
    known = ", ".join(OBJECTIVES)
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(f"`--objectives` names {name!r}; the objectives are: {known}")
    if RETURN not in names or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`--objectives` must be return and one or more of the others, each once ({known}), got {names!r}")
    return sorted(names, key=lambda name: name != RETURN)
