"""The service: streams over HTTP for clients in any language, with tokens, metrics and a page."""

import rowsignal.exceptions

try:
    import fastapi  # noqa: F401 -- looked for
    import jwt  # noqa: F401 -- as above
    import prometheus_client  # noqa: F401 -- as above
    import pydantic_settings  # noqa: F401 -- as above
    import structlog  # noqa: F401 -- as above
    import uvicorn  # noqa: F401 -- as above
except ModuleNotFoundError as error:
    raise rowsignal.exceptions.missing_extra("The service", "service", error) from error

from rowsignal.service.dashboard_app import create_dashboard
from rowsignal.sse.access.grants import grant_everything

__all__ = ["create_dashboard", "grant_everything"]
