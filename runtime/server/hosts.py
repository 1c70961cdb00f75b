"""Which names the server answers to.

A web page can let its own name resolve to 127.0.0.1 (DNS rebinding); for the browser, a server there is then of the page's origin, and
everything it says may be read. What gives that away is the `Host` header. So a server that listens on a loopback address answers to
this machine's own names, and to others only if it was told them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cupola.runtime.errors import OptionError
from cupola.runtime.server.errors import ServerError, on_error

ANY = "*"


def check_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """The patterns in lower case: names, `*.example.org` for all below one, `*` for all. Raises OptionError."""
    for host in hosts:
        if host != ANY and (not host or any(c in "/@ *" for c in host.removeprefix("*.")) or name_of(host) != host.lower()):
            fix = 'give names without a port, such as "example.org", or "*.example.org" for all below it, or "*"'
            raise OptionError(f"is {host!r:.60}", field="allowed_hosts", fix=fix)
    return tuple(host.lower() for host in hosts)


def is_loopback(name: str) -> bool:
    """True if a name or address, without a port, is a loopback one."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def name_of(host: str) -> str:
    """The name in a `Host` header, without port, brackets and the dot of the root, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name = host if host.count(":") > 1 else host.partition(":")[0]  # an address of IPv6 without its brackets has more
    return name.removesuffix(".").lower()


class Hosts:
    """Refuses requests for names that the server does not answer to.

    Args:
        allowed: what `check_hosts` gave; this machine's own names are always allowed.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is meant for this server. A request without `Host` comes from no browser."""
        if scope["type"] == "http":
            for host in Headers(scope=scope).getlist("host"):
                if not self._is_allowed(name_of(host)):
                    message = f"the server does not answer to the host {name_of(host)!r:.200}; if it should, name it in --allowed-hosts"
                    response = on_error(None, ServerError(403, message, code="host_not_allowed"))  # type: ignore[arg-type]
                    return await response(scope, receive, send)
        await self._app(scope, receive, send)

    def _is_allowed(self, name: str) -> bool:
        return is_loopback(name) or any(
            pattern in (ANY, name) or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in self._allowed
        )
