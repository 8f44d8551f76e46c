"""Check of the owner of schema `rowsignal`, whose code runs with the caller's rights."""

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from rowsignal.exceptions import SchemaOwnerError
from rowsignal.postgres.binds import execute
from rowsignal.postgres.errors import message, sqlstate
from rowsignal.postgres.statements import query

UNTRUSTED = "RS002"


def check_owner(connection: Connection) -> None:
    """Raise `SchemaOwnerError` unless every object of the schema belongs to a trusted role.

    Trusted roles are the current role, superusers, and, for a role that is not a superuser, the
    roles of which it is a member. Any other role that owns the schema or one of its objects, or
    may create objects in it, could run its code with the rights of the current role (PostgreSQL
    manual, 5.10.6).
    """
    try:
        with connection.begin_nested():
            execute(connection, query("owner").removesuffix(";"))
    except DBAPIError as error:
        if sqlstate(error) == UNTRUSTED:
            raise SchemaOwnerError(message(error)) from error
        raise
