"""Free TCP ports for servers that are started again at the same address."""

import random
import socket
from collections import deque

# Linux gives outgoing connections ports from 32768 on (ip(7)), others from 49152 (RFC 6335): a
# client that connects while a server restarts could be given the very port of the server.
LOWEST, HIGHEST = 16_384, 32_767
ATTEMPTS = 1000

_given: deque[int] = deque(maxlen=ATTEMPTS)  # just now: their servers may not listen yet


def free_port(wanted: int | None = None) -> int:
    """Return a port of 127.0.0.1 that is free now, and that no outgoing connection is given.

    It is the wanted one if that is free.
    """
    if wanted and _is_free(wanted):
        return wanted
    chance = random.SystemRandom()
    for _ in range(ATTEMPTS):
        port = chance.randint(LOWEST, HIGHEST)
        if port not in _given and _is_free(port):
            _given.append(port)
            return port
    raise OSError(f"No port from {LOWEST} to {HIGHEST} is free on 127.0.0.1.")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
