"""A declarative base, and queries for one row."""

from rowsignal.orm.models.base import NAMING_CONVENTION, Base, get_base
from rowsignal.orm.models.queries import (
    QueryMixin,
    get_by_pk,
    get_one,
    get_or_create,
    update_or_create,
)

__all__ = [
    "NAMING_CONVENTION",
    "Base",
    "QueryMixin",
    "get_base",
    "get_by_pk",
    "get_one",
    "get_or_create",
    "update_or_create",
]
