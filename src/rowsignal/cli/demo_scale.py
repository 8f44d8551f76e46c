"""`rowsignal demo --scale`: relays and gateways whose parts are killed."""

import asyncio
import webbrowser

import typer
from rich.console import Console

from rowsignal.cli.errors import needing
from rowsignal.cli.output import console, errors, write_json

READERS = 6
RATE, QUICK = 8.0, 25.0


def demo_scale(
    *, once: bool, rate: float | None, port: int | None, is_opened: bool, json: bool
) -> None:
    """Run the demonstration, and show its report; exit with 1 where it is not good."""
    with needing("nats", "`rowsignal demo --scale`"):
        import rowsignal.relay  # noqa: PLC0415 -- an optional extra
    with needing("service", "`rowsignal demo --scale`"):
        import rowsignal.service  # noqa: F401, PLC0415 -- as above
    from rowsignal.demo.scale.report import ScaleReport  # noqa: PLC0415 -- as above
    from rowsignal.demo.scale.screens import (  # noqa: PLC0415 -- as above
        LiveScaleScreen,
        PlainScaleScreen,
        scale_summary,
    )
    from rowsignal.demo.scale.story import (  # noqa: PLC0415 -- as above
        ScaleStory,
        Scene,
        fixed_script,
        on_request,
    )

    out: Console = errors() if json else console()

    async def act(scene: Scene) -> None:
        if is_opened:
            await asyncio.to_thread(webbrowser.open, scene.page)
        await (fixed_script(scene) if once else on_request(scene))

    async def run() -> ScaleReport:
        with LiveScaleScreen(out) if out.is_terminal else PlainScaleScreen(out) as stage:
            story = ScaleStory(
                stage, rate=rate or (QUICK if once else RATE), readers=READERS, port=port
            )
            return await story.run(act)

    report = asyncio.run(run())
    if json:
        write_json(report.to_dict())
    else:
        console().print(scale_summary(report))
    if not report.is_good:
        raise typer.Exit(1)
