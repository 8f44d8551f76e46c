"""Standbys of embedded servers."""

import os
import subprocess
from pathlib import Path

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.programs import unprivileged_account


def base_backup(server: EmbeddedPostgres) -> Path:
    """Copy a running server's data; return the folder, to start a standby from."""
    folder = server.data_dir.parent / "copies"
    folder.mkdir()
    folder.chmod(0o755)
    account = unprivileged_account()
    host = server.dsn.partition("host=")[2]
    who = {} if account is None else {"user": account.uid, "group": account.gid}
    target = folder / "standby"
    if account is not None:
        target.mkdir(mode=0o700)
        os.chown(target, account.uid, account.gid)
    command = [str(server.bin_dir / "pg_basebackup"), "-h", host, "-U", "postgres", "-D"]
    subprocess.run([*command, str(target), "-R", "-c", "fast"], check=True, cwd="/", **who)
    return target
