"""Objects of mapped classes, made of values that were read without a session."""

from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

Model = TypeVar("Model")


def detached_instance(model: type[Model], values: Mapping[str, Any]) -> Model | None:
    """Return an object with these values by attribute, as if a session had loaded and left it.

    Attributes without a value are not loaded. Where a column tells the class of a row apart, the
    object is of that class; None if it is not a `model`.
    """
    mapper = class_of(inspect(model, raiseerr=True), values)
    if not issubclass(mapper.class_, model):
        return None
    instance: Model = mapper.class_manager.new_instance()
    for name in mapper.column_attrs.keys() & values.keys():
        set_committed_value(instance, name, values[name])
    make_transient_to_detached(instance)
    mapper.class_manager.dispatch.load(inspect(instance, raiseerr=True), None)
    return instance


def class_of(mapper: Mapper[Any], values: Mapping[str, Any]) -> Mapper[Any]:
    """Return the mapper of a row's class, of those that share its table."""
    telling = [
        attribute.key
        for attribute in mapper.column_attrs
        if any(column is mapper.polymorphic_on for column in attribute.columns)
    ]
    return mapper.polymorphic_map.get(values.get(telling[0]), mapper) if telling else mapper
