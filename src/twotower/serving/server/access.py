"""What surrounds every request: key, limits, access log, counts.

A request that would find the queue full is refused before its body is read: a server that is asked
for more than it can do must not spend its time on saying so.

The log has a line of JSON a request, with the pattern of the route and not its path, so that no id
of a user stands in it.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections import Counter
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twotower.serving.server.service import Service

log = logging.getLogger("twotower.access")

PROTECTED = ("/v1/", "/v2/", "/page/", "/metrics")
SCHEME = "Bearer "
QUEUED = ("/v1/recommend", "/v1/similar")  # POST requests of these wait in the queue
RETRY_AFTER = {"Retry-After": "1"}
OVERLOADED = {
    "full": "too many requests wait",
    "deadline": "the deadline has passed before there was an answer",
    "stopping": "the server is stopping",
}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Access:
    """ASGI middleware.

    Args:
        app: What answers.
        service: Whose figures are counted.
        api_key: What a client must show, as ``Authorization: Bearer <key>``; None for none.
    """

    def __init__(self, app: ASGIApp, *, service: Service, api_key: str | None) -> None:
        self._app = app
        self._service = service
        self._key = None if api_key is None else sha256(api_key.encode()).digest()
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, size = 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size += len(message.get("body", b""))
            await send(message)

        client = (scope.get("client") or ("",))[0]
        self._in_flight[client] += 1
        try:
            await (self._refusal(scope, client) or self._app)(scope, receive, counted)
        finally:
            self._in_flight[client] -= 1
            if not self._in_flight[client]:
                del self._in_flight[client]
            self._ended(scope, status, size, time.perf_counter() - started)

    def _refusal(self, scope: Scope, client: str) -> JSONResponse | None:
        if not scope["path"].startswith(PROTECTED):
            return None
        if self._key is not None and not self._shows_key(Headers(scope=scope)):
            problem = "must be `Bearer <API key>` with the key of this server"
            return _refused(401, "authorization", problem, {"WWW-Authenticate": "Bearer"})
        most = self._service.settings.max_in_flight
        if most is not None and self._in_flight[client] > most:
            problem = f"at most {most} requests of one address may be in flight"
            return _refused(429, "client", problem, RETRY_AFTER)
        if scope["path"] in QUEUED and scope["method"] == "POST" and self._service.is_full:
            self._service.metrics.overloaded("full")
            return FULL
        return None

    def _shows_key(self, headers: Headers) -> bool:
        given = headers.get("authorization", "")
        shown = sha256(given.removeprefix(SCHEME).encode()).digest()
        return given.startswith(SCHEME) and hmac.compare_digest(shown, self._key or b"")

    def _ended(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        if route == "other" and scope["path"] in QUEUED:  # refused before it was routed
            route = scope["path"]
        self._service.metrics.request(route, status, seconds)
        if self._service.settings.access_log:
            line = {
                "time": round(time.time(), 3),
                "method": scope["method"] if scope["method"] in METHODS else "other",
                "route": route,
                "status": status,
                "milliseconds": round(1000 * seconds, 3),
                "bytes": size,
            }
            log.info(json.dumps(line))


def _refused(status: int, place: str, problem: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"problems": [{"place": place, "problem": problem}]}, status, headers)


FULL = _refused(503, "server", OVERLOADED["full"], RETRY_AFTER)
