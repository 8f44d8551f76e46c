"""Settings of the service: the only place that reads the environment (`ROWSIGNAL_...`)."""

import ipaddress
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rowsignal.nats.subjects import is_nats
from rowsignal.sse import Limits
from rowsignal.sse.limits import RENAMED

PREFIX = "ROWSIGNAL_"
MIN_SECRET = 32

Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
Names = Annotated[tuple[str, ...], NoDecode]


class TokenKey(BaseModel):
    """One key that signs tokens; `algorithm` belongs to the key, not to the token.

    `kid` identifies the key during a rotation; `file` names a PEM file, `key` holds the secret or
    the PEM text itself.
    """

    kid: str | None = None
    algorithm: Algorithm = "HS256"
    key: SecretStr | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.key is None) == (self.file is None):
            raise ValueError("a token key has either `key` or `file`")
        if self.algorithm.startswith("HS") and len(self.text().encode()) < MIN_SECRET:
            raise ValueError(f"a secret for {self.algorithm} has at least {MIN_SECRET} bytes")
        return self

    def text(self) -> str:
        """Return the key itself."""
        if self.key is not None:
            return self.key.get_secret_value()
        assert self.file is not None  # noqa: S101 -- validated above
        return self.file.read_text()


class Settings(BaseSettings):
    """The settings of the service. Each field is also a variable: `ROWSIGNAL_DATABASE_URL`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    database_url: SecretStr = Field(description="postgresql://user@host/database")
    listen_url: SecretStr | None = Field(
        None,
        description=(
            "Where to LISTEN, when `database_url` leads through a pooler; an address of NATS to"
            " take a relay's messages for hints."
        ),
    )
    nats_url: SecretStr | None = Field(
        None, description="NATS, for a gateway; several servers with commas between them."
    )
    nats_database: str | None = Field(
        None, description="Database whose changes a gateway reads; default: that of the URL."
    )
    shared_limits: SecretStr | None = Field(
        None,
        description=(
            "NATS, where processes share the streams of a principal, tickets and the list of"
            " streams; a gateway uses `nats_url` unless this is set."
        ),
    )
    tables: Annotated[dict[str, list[str] | None], NoDecode] = Field(
        default_factory=dict,
        description=(
            "What is offered: names with commas between them, or JSON that maps names to lists of"
            " columns. Empty: every table that has triggers."
        ),
    )
    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8080, ge=0, le=65535, description="Port to bind.")
    workers: int = Field(1, ge=1, le=64, description="Processes.")
    root_path: str = Field("", description="Path under which a proxy shows the service.")

    token_secret: SecretStr | None = Field(
        None, description="Secret of HS256 tokens; short for one key in `token_keys`."
    )
    token_keys: tuple[TokenKey, ...] = Field((), description="JSON list of keys.")
    token_audience: str = Field("rowsignal", description="`aud` that tokens must carry.")
    token_issuer: str | None = Field(None, description="`iss` that tokens must carry.")
    token_leeway: float = Field(5.0, ge=0, le=300, description="Seconds that clocks may differ.")
    token_cookie: str = Field("rowsignal_token", description="Cookie that may carry the token.")
    ticket_lifetime: float = Field(30.0, gt=0, le=300, description="Seconds that tickets are good.")
    ticket_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / f"rowsignal-tickets-{_user()}",
        description="Private folder that the workers of a host share, for spent tickets.",
    )
    allow_anybody_to_read_everything: bool = Field(
        default=False, description="Bind beyond loopback without tokens."
    )
    cors_origins: Names = Field((), description="Exact origins of pages that may connect.")

    heartbeat: float = Field(15.0, gt=0, description="Longest silence on a stream, in seconds.")
    write_interval: float = Field(
        0.02, ge=0, description="Shortest time between two writes to a reader, in seconds."
    )
    write_timeout: float = Field(30.0, gt=0, description="Seconds that one write may take.")
    snapshot_timeout: float = Field(
        120.0, gt=0, description="Seconds that one reader may take over a snapshot."
    )
    max_buffer_bytes: int = Field(
        256 * 1024, ge=1024, description="Bytes that may wait for one reader."
    )
    max_streams: int = Field(2000, ge=1, description="Streams of one process.")
    max_streams_per_principal: int = Field(
        100,
        ge=1,
        description="Streams of one principal in one process, or in all that share limits.",
    )
    retention_age: float | None = Field(
        default=None,
        gt=0,
        description="Seconds that changes are kept; stored for every process that prunes.",
    )
    retention_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Size that the log may have; stored for every process that prunes.",
    )
    shutdown_grace: float = Field(10.0, gt=0, description="Seconds that open answers may take.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Level.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Form of log lines; auto is text in a terminal and json elsewhere."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, given: Any) -> Any:
        """Accept the settings of 0.1 under their old names, unless the new ones are set."""
        found = dict(given)
        for old, new in RENAMED.items():
            value = found.pop(old, os.environ.get(f"{PREFIX}{old.upper()}"))
            if value is not None and new in cls.model_fields:
                found.setdefault(new, value)
        return found

    @field_validator("shared_limits")
    @classmethod
    def _is_address_of_nats(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_nats(value.get_secret_value()):
            raise ValueError("limits are shared over NATS: write nats://host:4222")
        return value

    @field_validator("tables", mode="before")
    @classmethod
    def _read_tables(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            return json.loads(value)
        return dict.fromkeys(_split(value))

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _read_origins(cls, value: Any) -> Any:
        origins = _split(value) if isinstance(value, str) else value
        for origin in origins:
            parts = urlsplit(origin)
            exact = f"{parts.scheme}://{parts.netloc}"
            if parts.scheme not in {"http", "https"} or origin != exact or "*" in origin:
                raise ValueError(f"{origin!r} is no origin: write https://app.example, no path")
        return tuple(origins)

    @model_validator(mode="after")
    def _is_protected(self) -> Self:
        """Refuse to serve other machines without tokens, unless a setting allows it."""
        if self.keys or self.is_loopback or self.allow_anybody_to_read_everything:
            return self
        raise ValueError(
            f"host={self.host} can be reached by others, and no token keys are set: set"
            f" {PREFIX}TOKEN_SECRET, bind 127.0.0.1, or say"
            f" {PREFIX}ALLOW_ANYBODY_TO_READ_EVERYTHING=true."
        )

    @property
    def retention(self) -> dict[str, Any]:
        """The limits of the log in these settings; others are read from the database."""
        given = {"max_age": self.retention_age, "max_bytes": self.retention_bytes}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def keys(self) -> tuple[TokenKey, ...]:
        """All token keys; without keys every client may read the offered tables."""
        if self.token_secret is None:
            return self.token_keys
        return (TokenKey(key=self.token_secret), *self.token_keys)

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def limits(self) -> Limits:
        """The limits of the streams."""
        return Limits(
            write_interval=self.write_interval,
            heartbeat=self.heartbeat,
            write_timeout=self.write_timeout,
            snapshot_timeout=self.snapshot_timeout,
            max_buffer_bytes=self.max_buffer_bytes,
            max_streams=self.max_streams,
            max_streams_per_principal=self.max_streams_per_principal,
        )

    @staticmethod
    def old_names() -> list[str]:
        """Return the variables that are set under their old names, with the new names."""
        return [
            f"{PREFIX}{old.upper()} is now {PREFIX}{new.upper()}"
            for old, new in RENAMED.items()
            if f"{PREFIX}{old.upper()}" in os.environ
        ]

    def export(self) -> None:
        """Put these settings into the environment, for new worker processes."""
        for name in self.model_fields_set:
            os.environ[f"{PREFIX}{name.upper()}"] = _as_text(getattr(self, name))


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, tuple):
        return json.dumps([_key_as_dict(item) for item in value])
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def _key_as_dict(key: TokenKey) -> dict[str, Any]:
    plain = key.model_dump(mode="json", exclude_none=True)
    return {**plain, **({"key": key.text()} if key.key is not None else {})}


def _split(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"
