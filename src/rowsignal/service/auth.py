"""Authentication: signed tokens, and the grants that they contain."""

from collections.abc import Mapping, Sequence
from typing import Any

import jwt
from pydantic import BaseModel, ConfigDict, ValidationError

from rowsignal.changes import Operation
from rowsignal.exceptions import AccessDeniedError
from rowsignal.service.settings import TokenKey
from rowsignal.sse import Grant, TableGrant

MAX_TOKEN = 8192


class TableClaim(BaseModel):
    """The claim of a token about one table."""

    model_config = ConfigDict(extra="forbid")

    columns: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    where: tuple[str, ...] = ()


class Claims(BaseModel):
    """The claim `rowsignal` of a token; unknown members are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    tables: dict[str, TableClaim] = {}
    status: bool = False


def grant_of(claims: Mapping[str, Any]) -> Grant:
    """Return the grant of verified claims; raise `AccessDeniedError` if they are malformed."""
    try:
        ours = Claims.model_validate(claims.get("rowsignal", {}))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise AccessDeniedError(f"The token's claim rowsignal.{where} is not valid.") from None
    tables = {
        name: TableGrant(columns=it.columns, operations=it.operations, where=it.where)
        for name, it in ours.tables.items()
    }
    return Grant(
        tables=tables,
        principal=str(claims.get("sub") or "token"),
        expires_at=float(claims["exp"]),
        status=ours.status,
    )


class Authenticator:
    """Verifies tokens with keys; each key has one algorithm.

    Several keys allow rotation: add the new key, sign with it, and remove the old key when its last
    token has expired.
    """

    def __init__(
        self,
        keys: Sequence[TokenKey],
        *,
        audience: str,
        issuer: str | None = None,
        leeway: float = 0.0,
    ) -> None:
        self._keys = [(key.kid, key.algorithm, key.text()) for key in keys]
        self._audience = audience
        self._issuer = issuer
        self._leeway = leeway

    def claims(self, token: str) -> dict[str, Any]:
        """Return a token's claims; raise `AccessDeniedError` if it is invalid."""
        if len(token) > MAX_TOKEN:
            raise AccessDeniedError("The token is too long.")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise AccessDeniedError("The token is not a JSON Web Token.") from None
        complaint = "The token is signed with a key that is not known here."
        for name, algorithm, key in self._keys:
            if kid is None or name is None or kid == name:
                try:
                    return self._decode(token, key, algorithm)
                except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError):
                    continue
                except jwt.PyJWTError as error:
                    raise AccessDeniedError(f"The token does not count: {error}.") from None
        raise AccessDeniedError(complaint)

    def _decode(self, token: str, key: str, algorithm: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            issuer=self._issuer,
            leeway=self._leeway,
            options={"require": ["exp", "aud"]},
        )
        return claims
