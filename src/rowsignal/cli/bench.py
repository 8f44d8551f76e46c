def bench() -> None:
    """Bench."""
