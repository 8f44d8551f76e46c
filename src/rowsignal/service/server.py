"""Running the service: uvicorn, one process or several."""

import uvicorn

from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings

FACTORY = "rowsignal.service.app:create_app"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; open streams get a `bye` and time to end.

    uvicorn writes no access log: its lines would hold queries, and so tickets.
    """
    if settings.workers > 1:
        settings.export()
    uvicorn.run(
        FACTORY if settings.workers > 1 else create_app(settings),
        factory=settings.workers > 1,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
    )
