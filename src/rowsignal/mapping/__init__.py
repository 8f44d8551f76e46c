"""Mapping of models: rows, keys and columns, and the engine that reads them."""

from rowsignal.mapping.instances import detached_instance
from rowsignal.mapping.keys import hashable, primary_key_of
from rowsignal.mapping.row_types import ColumnReader, RowTypes, attribute_names
from rowsignal.mapping.shapes import (
    KeyColumns,
    PrimaryKey,
    RowCriterion,
    RowQuery,
    RowShape,
    key_text,
)
from rowsignal.mapping.targets import (
    Source,
    Target,
    attributes_of,
    class_for,
    has_deleted,
    has_flushed,
    held_instance,
    mapper_of,
)

__all__ = [
    "ColumnReader",
    "KeyColumns",
    "PrimaryKey",
    "RowCriterion",
    "RowQuery",
    "RowShape",
    "RowTypes",
    "Source",
    "Target",
    "attribute_names",
    "attributes_of",
    "class_for",
    "detached_instance",
    "has_deleted",
    "has_flushed",
    "hashable",
    "held_instance",
    "key_text",
    "mapper_of",
    "primary_key_of",
]
