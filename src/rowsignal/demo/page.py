"""The service's page over the demonstration's database, served beside it."""

import asyncio
import contextlib
import errno
import socket
import webbrowser
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from pydantic import SecretStr

from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings

HOST = "127.0.0.1"
USUAL_PORT = 8080


class PageServer(uvicorn.Server):
    """A server that leaves signals to its program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not capture signals."""
        yield


@contextlib.asynccontextmanager
async def serve_page(
    database_url: str, *, port: int | None = None, is_opened: bool = False
) -> AsyncIterator[str]:
    """Serve while the block runs, on port 8080 or any free one; yield the page's address.

    Raises `OSError` if a requested port is taken.
    """
    with TemporaryDirectory(prefix="rowsignal-demo-") as folder, _bind(port) as bound:
        app = create_app(_settings(database_url, Path(folder)))
        server = PageServer(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        )
        task = asyncio.create_task(server.serve(sockets=[bound]), name="rowsignal demo page")
        address = f"http://{HOST}:{bound.getsockname()[1]}/"
        if is_opened:
            await asyncio.to_thread(webbrowser.open, address)
        try:
            yield address
        finally:
            app.state.service.outlet.close_streams()  # uvicorn waits for open responses
            server.should_exit = True
            await task


def _settings(database_url: str, tickets: Path) -> Settings:
    """Return settings that do not depend on the environment."""
    said: dict[str, Any] = {
        "database_url": SecretStr(database_url),
        "listen_url": None,
        "tables": {},
        "host": HOST,
        "port": 0,
        "workers": 1,
        "root_path": "",
        "token_secret": None,
        "token_keys": (),
        "cors_origins": (),
        "ticket_dir": tickets,
        "log_level": "error",
        "log_format": "text",
    }
    return Settings(**said)


def _bind(port: int | None) -> socket.socket:
    try:
        return socket.create_server((HOST, USUAL_PORT if port is None else port))
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            return socket.create_server((HOST, 0))
        raise
