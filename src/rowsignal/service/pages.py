"""The static files: the page at `/`, its parts, and `client.js`."""

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; worker-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
TYPES = {".js": "text/javascript", ".ts": "text/plain", ".html": "text/html", ".css": "text/css"}
CLIENT = ("client.js", "client.d.ts")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, with an entity tag of its content."""

    body: bytes
    media_type: str
    tag: str

    async def answer(self, request: Request) -> Response:
        """Return the file, or 304 if the client has it."""
        headers = {**HEADERS, "ETag": self.tag}
        known = {tag.strip() for tag in request.headers.get("if-none-match", "").split(",")}
        if self.tag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def load_assets() -> Mapping[str, Asset]:
    """Read every file of the dashboard, by name."""
    assets = {}
    for path in files(__package__).joinpath("dashboard").iterdir():
        if path.is_file() and not path.name.startswith((".", "_")):
            assets[path.name] = _asset(path)
    return assets


def load_client() -> Mapping[str, Asset]:
    """Read the script for browsers and its types, by name."""
    folder = files("rowsignal.sse.client")
    return {name: _asset(folder.joinpath(name)) for name in CLIENT}


def _asset(path: Traversable) -> Asset:
    body = path.read_bytes()
    suffix = "." + path.name.rpartition(".")[2]
    kind = TYPES.get(suffix) or mimetypes.guess_type(path.name)[0]
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Asset(body, kind or "application/octet-stream", tag)


def pages_router() -> APIRouter:
    """Return the routes, one for each file, so that no path reaches other files."""
    router = APIRouter(include_in_schema=False)
    for name, asset in load_assets().items():
        path = "/" if name == "index.html" else f"/dashboard/{name}"
        router.add_api_route(path, asset.answer, methods=["GET"])
    router.include_router(client_router())
    return router


def client_router() -> APIRouter:
    """Return the routes of the script for browsers."""
    router = APIRouter(include_in_schema=False)
    for name, asset in load_client().items():
        router.add_api_route(f"/{name}", asset.answer, methods=["GET"])
    return router
