"""What autogenerate finds when it compares models with the triggers in the database."""


def compare(context, upgrade_ops, schemas):
    from alembic.util import PriorityDispatchResult

    return PriorityDispatchResult.CONTINUE
