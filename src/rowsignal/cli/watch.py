def watch() -> None:
    """Watch."""
