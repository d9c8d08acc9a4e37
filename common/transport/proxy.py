"""Passing a call on to whoever can answer it, whole or as a stream.

A call is passed on at most ``MAX_HOPS`` times, so that two daemons that each believe the other to
lead do not play ball with it.
"""

from collections.abc import Callable

import aiohttp
from aiohttp import web
from yarl import URL

from snooze.common.errors import NotLeader, RemoteError, RemoteTimeout
from snooze.common.transport.delivery import not_sent
from snooze.common.wire import Address

HOPS_HEADER = "X-Snooze-Hops"
MAX_HOPS = 3

_CONNECT_TIMEOUT_S = 2.0
_SILENCE_S = 90.0
_CHUNK_BYTES = 64 * 1024
_OF_ONE_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        HOPS_HEADER.lower(),
    }
)


class Proxy:
    """Passes calls on; to be started and closed with the daemon."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool of connections."""
        self._session = aiohttp.ClientSession(
            # No bound of its own: there are as many as callers, whom the server bounds. With less,
            # callers who wait for a task would keep all others from the leader.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers={"User-Agent", "Accept", "Accept-Encoding", "Content-Type"},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_S
            ),
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def pass_on(
        self, request: web.Request, target: Address, begun: Callable[[], object] = lambda: None
    ) -> web.StreamResponse:
        """The target's answer to ``request``, as it is; ``begun`` is called when it comes in.

        Raises:
            NotLeader: it went from hand to hand too often.
            RemoteError: the target cannot be reached (``was_sent`` is false) or broke off.
            RemoteTimeout: it fell silent: it may have happened.
        """
        hops = request.headers.get(HOPS_HEADER, "0")
        count = int(hops) if hops.isascii() and hops.isdigit() and len(hops) < 3 else MAX_HOPS
        if count >= MAX_HOPS:
            raise NotLeader("nobody knows who leads at this moment", retry_after_s=0.5)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _OF_ONE_CONNECTION
        }
        headers[HOPS_HEADER] = str(count + 1)
        body = await request.read()
        url = URL(f"http://{target}").join(URL(request.rel_url.raw_path_qs or "/", encoded=True))
        if self._session is None:
            raise not_sent("this daemon stops")
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as reply:
                begun()
                return await self._hand_back(request, reply)
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            UnicodeError,  # a name that can be none
        ) as error:
            raise not_sent(f"{target} cannot be reached: {error}") from None
        except TimeoutError:
            raise RemoteTimeout(f"{target} fell silent; it may have happened") from None
        except aiohttp.ClientError as error:
            raise RemoteError(f"{target} broke off: {error}; it may have happened") from None

    async def _hand_back(
        self, request: web.Request, reply: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = {
            name: value
            for name, value in reply.headers.items()
            if name.lower() not in _OF_ONE_CONNECTION
        }
        if reply.content_length is not None or reply.status == 204:
            return web.Response(status=reply.status, headers=headers, body=await reply.read())
        response = web.StreamResponse(status=reply.status, headers=headers)
        await response.prepare(request)
        try:
            async for chunk in reply.content.iter_any():
                await response.write(chunk)
        except (aiohttp.ClientError, TimeoutError):
            # The head is out: all that can be said is that this was not the end.
            response.force_close()
            if request.transport is not None:
                request.transport.close()
        return response
