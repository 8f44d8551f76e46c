"""Subjects and stream names, by their names in this package."""

from rowsignal.nats.subjects import (
    all_subjects,
    presence_subject,
    stream_name,
    subject_of,
    token,
)

__all__ = ["all_subjects", "presence_subject", "stream_name", "subject_of", "token"]
