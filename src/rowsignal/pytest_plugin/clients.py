"""A client for tests of an application, without a server."""

from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from rowsignal.exceptions import MissingExtraError

if TYPE_CHECKING:
    from httpx import AsyncClient

Dependency = Callable[..., Any]


@asynccontextmanager
async def create_async_client(
    app: Any,
    base_url: str = "http://test",
    dependency_overrides: Mapping[Dependency, Dependency] | None = None,
    *,
    lifespan: bool = False,
    **options: Any,
) -> "AsyncIterator[AsyncClient]":
    """Open an httpx client that calls an application directly.

        async with create_async_client(app, dependency_overrides={get_db: override}) as client:
            assert (await client.get("/orders")).status_code == 200

    `dependency_overrides` apply until the client is closed. With `lifespan` the application starts
    before and shuts down after; the state that its lifespan yields is `request.state`. `options` go
    to `httpx.AsyncClient`. Raises `MissingExtraError` without httpx.
    """
    try:
        from httpx import ASGITransport, AsyncClient  # noqa: PLC0415 -- not every program has it
    except ModuleNotFoundError as error:
        raise MissingExtraError("create_async_client needs httpx: pip install httpx.") from error
    async with AsyncExitStack() as stack:
        if dependency_overrides:
            former = dict(app.dependency_overrides)
            app.dependency_overrides.update(dependency_overrides)
            stack.callback(_put_back, app.dependency_overrides, dependency_overrides, former)
        state = (
            await stack.enter_async_context(app.router.lifespan_context(app)) if lifespan else {}
        )
        transport = ASGITransport(_with_state(app, state or {}))
        yield await stack.enter_async_context(
            AsyncClient(transport=transport, base_url=base_url, **options)
        )


def _put_back(
    overrides: MutableMapping[Any, Any], ours: Mapping[Any, Any], former: Mapping[Any, Any]
) -> None:
    for key in ours:
        overrides.pop(key, None)
        if key in former:
            overrides[key] = former[key]


def _with_state(app: Any, state: Mapping[str, Any]) -> Any:
    async def call(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = dict(state)
        await app(scope, receive, send)

    return call
