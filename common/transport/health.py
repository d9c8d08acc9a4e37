"""``/health`` and ``/ready``, which every daemon answers."""

from collections.abc import Callable

import msgspec
from aiohttp import web

from snooze.common.api import HealthView


def add_health(app: web.Application, health: Callable[[], HealthView]) -> None:
    """Serve both: ``/health`` is 200 while the process lives, ``/ready`` 503 while it cannot serve.

    ``health`` says what keeps the daemon from serving, in ``reasons``.
    """

    async def alive(_request: web.Request) -> web.Response:
        return _json(msgspec.structs.replace(health(), status="alive"), 200)

    async def ready(_request: web.Request) -> web.Response:
        view = health()
        return _json(view, 503 if view.reasons else 200)

    app.router.add_get("/health", alive)
    app.router.add_get("/ready", ready)


def _json(view: HealthView, status: int) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(view), status=status, content_type="application/json"
    )
