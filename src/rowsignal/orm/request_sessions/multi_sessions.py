"""A session for each task of one `async with db(multi_sessions=True)` block."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from rowsignal.exceptions import MissingSessionError, PoolTimeoutError, RolledBackError
from rowsignal.orm.request_sessions.engine_binding import EngineBinding
from rowsignal.orm.request_sessions.pools import check_seconds, take_connection
from rowsignal.orm.request_sessions.scopes import Scope, SessionScope
from rowsignal.orm.request_sessions.slots import Slots
from rowsignal.orm.sessions.aborted import connections_of, typed_aborted_errors
from rowsignal.orm.sessions.connections import run_to_completion
from rowsignal.orm.sessions.finishing import ENDED

AnyTask = asyncio.Task[Any]
AnyCoroutine = Coroutine[Any, Any, Any]


@dataclass(frozen=True)
class MultiSessionRules:
    """The options of a block."""

    commit_on_exit: bool = False
    max_concurrent: int | None = None
    all_or_nothing: bool = False
    pool_timeout: float | None = None

    def __post_init__(self) -> None:
        check_seconds("pool_timeout", self.pool_timeout)
        limit = self.max_concurrent
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"max_concurrent={limit!r} must be a whole number, at least 1.")
        if self.all_or_nothing and self.max_concurrent is not None:
            raise ValueError(
                "all_or_nothing keeps every task's session open to the block's end, so that "
                "max_concurrent would let later tasks wait for ever: pass one of them."
            )


class MultiSessionScope:
    """Gives each task its own session, which ends with the task.

    The block's own task, the parent, has a session too; it ends with the block and takes one of the
    `max_concurrent` places.
    """

    def __init__(
        self,
        binding: EngineBinding,
        rules: MultiSessionRules,
        outer: Scope | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.binding = binding
        self.outer = outer
        self.rules = rules
        self.slots = Slots(rules.max_concurrent, binding.pool_status)
        self.has_ended = False
        self._arguments = arguments
        self._parent = asyncio.current_task()
        self._scopes: dict[AnyTask | None, SessionScope] = {}
        self._kept: list[SessionScope] = []
        self._children: set[AnyTask] = set()
        self._closers: set[AnyTask] = set()
        self._errors: list[BaseException] = []
        self._gathering = 0

    @property
    def session(self) -> AsyncSession:
        """The current task's session, created at first use."""
        task = asyncio.current_task()
        scope = self._scopes.get(task)
        if scope is None:
            scope = self._open_unasked(task)
        return scope.session

    def held_connections(self) -> int:
        """Count the connections that are not returned while the current task waits.

        Sibling tasks return their connections when they end, unless the block keeps all sessions to
        its end: then connections that are still being acquired count, too.
        """
        if self.rules.all_or_nothing:
            return sum(scope.has_asked for scope in (*self._scopes.values(), *self._kept))
        tasks = {asyncio.current_task(), self._parent}
        scopes = [self._scopes[task] for task in tasks if task in self._scopes]
        return sum(scope.held_connections() for scope in scopes)

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[AsyncSession]:
        """Wait for a place and yield the task's session, created at first use.

        `timeout`, or the block's `pool_timeout`, limits the wait for place and connection.
        """
        self._refuse_when_ended()
        timeout = self.rules.pool_timeout if timeout is None else timeout
        start, task = monotonic(), asyncio.current_task()
        # Its own place: waiting for a second one could be a wait for itself.
        if task in self._scopes:
            yield await self._connected(self._scopes[task], timeout, start)
            return
        self._adopt(task)
        async with self._place(task, timeout) as scope:
            yield await self._connected(scope, timeout, start)

    async def _connected(
        self, scope: SessionScope, timeout: float | None, start: float
    ) -> AsyncSession:
        if timeout is not None:
            used = monotonic() - start
            await take_connection(scope.session, self.binding.engine.pool, timeout, used=used)
        return scope.session

    async def gather(self, *work: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
        """Run coroutines, each in a task with a session; return their results in order.

        Sessions are committed or rolled back before this returns. With `max_concurrent` it accepts
        only coroutines, and the first failure cancels the others.
        """
        if self.has_ended:
            _drop(one for one in work if asyncio.iscoroutine(one))
            raise MissingSessionError(ENDED)
        if self.slots.limit is None:
            runs = [self._start(one) if asyncio.iscoroutine(one) else one for one in work]
            return await asyncio.gather(*runs, return_exceptions=return_exceptions)
        coroutines = _only_coroutines(work)
        is_holder = asyncio.current_task() in self._scopes
        self._refuse_deadlock(coroutines, is_holder)
        self._gathering += is_holder
        try:
            tasks = [self._start(one) for one in coroutines]
            return await _gather_cancelling(tasks, return_exceptions=return_exceptions)
        finally:
            self._gathering -= is_holder

    async def finish(self, *, has_succeeded: bool) -> None:
        """Await the block's tasks, or cancel them if the block failed, and end every session."""
        # A generator with such a block may be closed by a task that has used its sessions.
        self._children -= {asyncio.current_task()}
        if not has_succeeded:
            await run_to_completion(self._end(has_succeeded=False))
            return
        try:
            await _wait_for(self._children)
            # Commits of tasks that have ended: their errors belong to the block.
            await _wait_for(self._closers)
            self._raise_errors()
            await self._end(has_succeeded=True)
        except BaseException:
            await run_to_completion(self._end(has_succeeded=False))
            raise

    async def _end(self, *, has_succeeded: bool) -> None:
        for task in self._children:
            task.cancel()
        await _wait_for(self._children)
        # Only now: a task that is cancelled may still use its session to clean up.
        self.has_ended = True
        await _wait_for(self._closers)
        await self._end_together(has_succeeded=has_succeeded)

    def _open_unasked(self, task: AnyTask | None) -> SessionScope:
        self._refuse_when_ended()
        if task is not self._parent and self.rules.max_concurrent is not None:
            raise MissingSessionError(
                "With max_concurrent a task gets its session from `async with db.connection()` "
                "or by running under `db.gather()`, where it can wait for a place."
            )
        if not self.slots.take_now():
            raise PoolTimeoutError(
                f"All {self.slots.limit} sessions of this block are taken: the block's own task "
                "counts as well, so let it use db.session first, or raise max_concurrent.",
                pool_status=self.binding.pool_status(),
            )
        scope = self._open(task)
        if task is not None and task is not self._parent:
            self._adopt(task)
            task.add_done_callback(self._close_later)
        return scope

    def _open(self, task: AnyTask | None, timeout: float | None = None) -> SessionScope:
        timeout = self.rules.pool_timeout if timeout is None else timeout
        # A block that keeps its connections never returns the one that a sibling holds
        outer = self if self.rules.all_or_nothing else self.outer
        scope = SessionScope(self.binding, outer, self._arguments, timeout)
        self._scopes[task] = scope
        return scope

    def _adopt(self, task: AnyTask | None) -> None:
        if task is not None and task is not self._parent and task not in self._children:
            self._children.add(task)
            task.add_done_callback(self._children.discard)

    def _close_later(self, task: AnyTask) -> None:
        if task not in self._scopes:
            return
        # A done callback cannot await: the session is ended in a task of its own.
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        closer = asyncio.ensure_future(self._close(task, failure))
        self._closers.add(closer)
        closer.add_done_callback(self._closed)

    def _closed(self, closer: AnyTask) -> None:
        self._closers.discard(closer)
        error = None if closer.cancelled() else closer.exception()
        if error is not None:
            self._errors.append(error)

    async def _close(self, task: AnyTask | None, failure: BaseException | None) -> None:
        scope = self._scopes.pop(task)
        if self.rules.all_or_nothing:
            self._kept.append(scope)
            if failure is not None:
                self._errors.append(_rolled_back(failure))
            return
        try:
            commit = failure is None and self.rules.commit_on_exit
            await scope.finish(commit=commit, commit_begun=failure is None)
        finally:
            self.slots.give()

    @asynccontextmanager
    async def _place(
        self, task: AnyTask | None, timeout: float | None = None
    ) -> AsyncIterator[SessionScope]:
        await self.slots.take(timeout)
        try:
            self._refuse_when_ended()
        except MissingSessionError:
            self.slots.give()
            raise
        scope = self._open(task, timeout)
        try:
            yield scope
        except BaseException as error:
            await run_to_completion(self._close(task, error))
            raise
        await self._close(task, None)

    def _start(self, work: AnyCoroutine) -> AnyTask:
        task = asyncio.create_task(self._run(work))
        # A task that is cancelled before its first step has not awaited the coroutine.
        task.add_done_callback(lambda _: work.close())
        self._adopt(task)
        return task

    async def _run(self, work: AnyCoroutine) -> Any:
        async with self._place(asyncio.current_task()):
            return await work

    async def _end_together(self, *, has_succeeded: bool) -> None:
        scopes = [*self._scopes.values(), *self._kept]
        is_kept_whole = bool(has_succeeded and self._kept)
        self._scopes.clear()
        commit = has_succeeded and self.rules.commit_on_exit
        if is_kept_whole:
            try:
                # What can fail is tried before the first commit, which cannot be taken back.
                await check_constraints(scopes)
            except BaseException:
                await run_to_completion(_roll_back(scopes))
                raise
        ending = _finish(scopes, commit=commit, commit_begun=has_succeeded)
        # After the first commit a cancellation must not prevent the others
        await (run_to_completion(ending) if is_kept_whole else ending)

    def _raise_errors(self) -> None:
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise BaseExceptionGroup("Several tasks of one block failed.", self._errors)

    def _refuse_when_ended(self) -> None:
        if self.has_ended:
            raise MissingSessionError(ENDED)

    def _refuse_deadlock(self, coroutines: list[AnyCoroutine], is_holder: bool) -> None:
        if is_holder and self.slots.limit == self._gathering + 1:
            _drop(coroutines)
            raise PoolTimeoutError(
                f"All {self.slots.limit} sessions of this block belong to tasks that wait for this "
                "db.gather(): raise max_concurrent, or gather before using db.session.",
                pool_status=self.binding.pool_status(),
            )


async def check_constraints(scopes: list[SessionScope]) -> None:
    """Flush every session and check its deferred constraints, before the first one commits."""
    for session in filter(None, (scope.opened for scope in scopes)):
        with typed_aborted_errors():
            await session.flush()
            await session.run_sync(_check_constraints, connections_of(session))


def _check_constraints(_: Session, connections: list[Connection]) -> None:
    for connection in connections:
        if connection.dialect.name == "postgresql":
            connection.execute(text("set constraints all immediate"))


async def _finish(scopes: list[SessionScope], *, commit: bool, commit_begun: bool) -> None:
    """End sessions one after another; after a failure roll the others back."""
    try:
        while scopes:
            await scopes.pop(0).finish(commit=commit, commit_begun=commit_begun)
    except BaseException:
        await run_to_completion(_roll_back(scopes))
        raise


async def _roll_back(scopes: list[SessionScope]) -> None:
    for scope in scopes:
        await scope.finish(commit=False)


async def _wait_for(tasks: set[AnyTask]) -> None:
    while tasks:
        await asyncio.wait(tasks)


async def _gather_cancelling(tasks: list[AnyTask], *, return_exceptions: bool) -> list[Any]:
    try:
        return await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    except BaseException:
        # asyncio.gather leaves the others running when one fails.
        for task in tasks:
            task.cancel()
        await run_to_completion(_all_done(tasks))
        raise


async def _all_done(tasks: list[AnyTask]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _only_coroutines(work: tuple[Awaitable[Any], ...]) -> list[AnyCoroutine]:
    coroutines = [one for one in work if asyncio.iscoroutine(one)]
    if len(coroutines) < len(work):
        _drop(coroutines)
        raise TypeError(
            "With max_concurrent, db.gather() takes coroutines: a task or future runs already, "
            "outside the limit. Pass `work(i)`, not `asyncio.create_task(work(i))`."
        )
    return coroutines


def _drop(coroutines: Iterable[AnyCoroutine]) -> None:
    for one in coroutines:
        one.close()


def _rolled_back(failure: BaseException) -> RolledBackError:
    error = RolledBackError(
        "This all_or_nothing block was rolled back: a task of it failed or was cancelled."
    )
    error.__cause__ = failure
    return error
