"""A real PostgreSQL server that a test starts for itself, and stops."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "secret-of-the-test"


def find_binaries() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``: Debian keeps them out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def _user() -> dict[str, Any]:
    """As whom to run: PostgreSQL refuses root."""
    return dict(user="nobody", group="nogroup", extra_groups=[]) if os.geteuid() == 0 else {}


@contextmanager
def server(binaries: Path) -> Iterator[str]:
    """
    :param binaries: What :func:`find_binaries` gave.
    :return: URL of an empty database.
    """
    folder = Path(tempfile.mkdtemp(prefix="sb3-sparse-postgresql-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = _user()
    if user:
        shutil.chown(folder, "nobody", "nogroup")
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), *arguments]
        subprocess.run(
            command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=120, **user
        )

    try:
        run("initdb", "-D", str(data), "-U", "tuner", "-A", "scram-sha-256", f"--pwfile={password}", "-N", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://tuner:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
