"""Tokens for the service, signed as an application signs them."""

import time

import jwt

SECRET = "a secret that is long enough to sign with, whichever digest is used for it"


def token(grant, key=SECRET, algorithm="HS256", headers=None, **claims):
    body = {"sub": "user-7", "aud": "rowsignal", "exp": time.time() + 60, "rowsignal": grant}
    body = {name: value for name, value in {**body, **claims}.items() if value is not None}
    return jwt.encode(body, key, algorithm, headers=headers)


def bearer(grant, **claims):
    """Headers with a token for a grant: `{"public.orders": {...}}`, and `status` beside it."""
    status = claims.pop("status", False)
    return {"Authorization": f"Bearer {token({'tables': grant, 'status': status}, **claims)}"}
