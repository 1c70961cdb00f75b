"""File descriptors: how many connections they allow, with enough left for an engine to be started again."""

from __future__ import annotations

import socket

from cupola.runtime.errors import OptionError
from cupola.runtime.server.logs import log
from cupola.runtime.system.open_files import allow_open_files

ACCEPTED_AT_ONCE = 32  # connections that asyncio takes before it looks at any
RESERVED = 64 + ACCEPTED_AT_ONCE  # for the engine, grammars, templates, the log
FEWEST_CONNECTIONS = 8
BACKLOG = 2048  # connections that wait in the system until they are accepted


class Listener(socket.socket):
    """A listening socket with a long queue. asyncio would set it to as many connections as it accepts at once."""

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Listens, with a queue of `BACKLOG`."""
        super().listen(BACKLOG)


def max_connections(wanted: int) -> int:
    """How many clients may be connected: what is wanted, if the system can be brought to allow so many. Raises OptionError."""
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise OptionError(f"is {wanted!r:.60}", field="max_connections", fix="give a whole number of at least 1")
    open_files = allow_open_files(wanted + RESERVED)
    allowed = min(wanted, open_files - RESERVED)
    if allowed < min(wanted, FEWEST_CONNECTIONS):
        fewest = RESERVED + FEWEST_CONNECTIONS
        raise OptionError(
            f"this process may open {open_files} files, too few", field="max_connections", fix=f"raise `ulimit -n` to {fewest} at least"
        )
    if allowed < wanted:
        fields = {"max_connections": allowed, "open_files": open_files}
        log.warning("fewer clients may be connected than were asked for; raise `ulimit -n` for more", extra={"fields": fields})
    return allowed
