"""`rowsignal config`: the settings of the service."""

from typing import TYPE_CHECKING, Any

from rich.text import Text

from rowsignal.cli.connections import parsed, place
from rowsignal.cli.errors import FAILED, CommandError, needing
from rowsignal.cli.options import Json, Url
from rowsignal.cli.output import write_json, write_table
from rowsignal.nats.subjects import is_nats

if TYPE_CHECKING:
    from pydantic import SecretStr

    from rowsignal.service.settings import Settings

HIDDEN = "(set, not shown)"


def config(*, url: Url = None, json: Json = False) -> None:
    """Show every setting of the service with its variable, its value and its purpose.

    Secrets are not shown, only whether they are set.
    """
    settings = read_settings(url)
    from rowsignal.service.settings import PREFIX, Settings  # noqa: PLC0415 -- an optional extra

    shown = {name: _shown(name, getattr(settings, name)) for name in Settings.model_fields}
    if json:
        write_json(shown)
        return
    rows = [
        (
            f"{PREFIX}{name.upper()}",
            Text(_text(value), style="bold" if name in settings.model_fields_set else ""),
            Settings.model_fields[name].description or "",
        )
        for name, value in shown.items()
    ]
    write_table(("variable", "value", "meaning"), rows)


def read_settings(url: str | None, **given: Any) -> "Settings":
    """Return the service's settings: options, then the environment, then defaults."""
    with needing("service", "The service"):
        from pydantic import SecretStr  # noqa: PLC0415 -- as above

        import rowsignal.service.settings  # noqa: F401, PLC0415 -- as above

    return settings_of(SecretStr(parsed(url).render_as_string(hide_password=False)), **given)


def settings_of(database_url: "SecretStr", **given: Any) -> "Settings":
    """Return the service's settings for a database whose address is known to be one."""
    from pydantic import ValidationError  # noqa: PLC0415 -- as above

    from rowsignal.service.settings import PREFIX, Settings  # noqa: PLC0415 -- as above

    said = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(database_url=database_url, **said)
    except ValidationError as error:
        # the whole message would repeat the values, and with them secrets
        first = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        where = f"{PREFIX}{name}: " if name else ""
        raise CommandError(f"{where}{first['msg'].removeprefix('Value error, ')}", FAILED) from None


def _shown(name: str, value: Any) -> Any:
    if name in {"nats_url", "shared_limits"}:
        return value and HIDDEN
    if name in {"database_url", "listen_url"}:
        url = value and value.get_secret_value()
        return HIDDEN if url and is_nats(url) else url and place(parsed(url))
    if name == "token_secret":
        return value and HIDDEN
    if name == "token_keys":
        return [{"kid": key.kid, "algorithm": key.algorithm, "key": HIDDEN} for key in value]
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | dict | None) else str(value)


def _text(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
