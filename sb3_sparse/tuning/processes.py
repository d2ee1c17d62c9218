"""Which process a trial belongs to, and whether that process is still there: SIGKILL leaves no other trace."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path


def _machine() -> str:
    """This machine since it was booted, and within it the space that process numbers belong to."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Not Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _start(pid: int) -> str | None:
    """When a process started, so that its number's next owner is not taken for it; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    # Fields 3 and 22 of proc(5); a zombie has ended
    return None if fields[0] in "ZX" else fields[19]


def identity(pid: int | None = None) -> dict[str, str | int | None]:
    """
    :param pid: Number of a process of this machine; None: this one.
    :return: What tells it from all others, as JSON values.
    """
    pid = os.getpid() if pid is None else pid
    return {"machine": _machine(), "pid": pid, "start": _start(pid)}


def is_gone(process: dict[str, str | int | None]) -> bool | None:
    """
    :param process: What :func:`identity` gave, perhaps on another machine. A process that is stopped is not gone.
    :return: Whether it has ended; None if that cannot be seen from here.
    """
    if process["machine"] != _machine():
        # After a reboot nothing of before runs any more
        mine, other = _machine().split(), str(process["machine"]).split()
        return True if mine[:1] == other[:1] and len(mine) == len(other) == 3 and mine[1] != other[1] else None
    assert isinstance(process["pid"], int)
    return _start(process["pid"]) != process["start"]
