"""Examine a database: what keeps changes from arriving, and the command that mends it."""

from rowsignal.doctor.diagnosis import diagnose
from rowsignal.doctor.findings import Finding, Severity
from rowsignal.doctor.stream_checks import stream_findings

__all__ = ["Finding", "Severity", "diagnose", "stream_findings"]
