"""Links and HTTP over TLS, both sides showing a certificate."""

import pathlib
import ssl
import subprocess

import msgspec
import pytest
from aiohttp import web

from snooze.common.errors import RemoteError
from snooze.common.transport.delivery import was_sent
from snooze.common.transport.http_client import HttpClient
from snooze.common.transport.http_server import HttpServer
from snooze.common.transport.link import CloseCause, Service, connect
from snooze.common.transport.link_server import Accepted, LinkServer


class Echo(msgspec.Struct, tag=True):
    text: str


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A key and its certificate for localhost, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def server_side(certificate: pathlib.Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    context.load_cert_chain(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def client_side(certificate: pathlib.Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate)
    context.load_cert_chain(certificate)
    return context


async def test_a_link(
    server_side: ssl.SSLContext, client_side: ssl.SSLContext, certificate: pathlib.Path
) -> None:
    async def answer(message: Echo) -> Echo:
        return message

    async def on_hello(hello: Echo, peer: str) -> Accepted:
        del peer
        return Accepted(hello, Service(requests=Echo, answer=answer))

    server = LinkServer("localhost", 0, Echo, on_hello, ssl_context=server_side)
    await server.start()
    link, welcome = await connect(
        "localhost", server.port, Echo("hi"), Echo, ssl_context=client_side
    )
    assert welcome == Echo("hi")
    big = Echo("x" * 3_000_000)
    assert await link.request(big, Echo, 20) == big
    without = ssl.create_default_context(cafile=certificate)
    with pytest.raises(RemoteError):
        await connect("localhost", server.port, Echo("hi"), Echo, ssl_context=without)
    with pytest.raises(RemoteError):
        await connect("localhost", server.port, Echo("hi"), Echo)
    await server.close("bye")
    assert (await link.closed).cause is CloseCause.PEER
    await link.wait_closed()


async def test_http(
    server_side: ssl.SSLContext, client_side: ssl.SSLContext, certificate: pathlib.Path
) -> None:
    async def show(request: web.Request) -> web.Response:
        return web.Response(text=request.scheme)

    app = web.Application()
    app.router.add_get("/", show)
    server = HttpServer(app, "localhost", 0, ssl_context=server_side)
    await server.start()
    url = f"https://localhost:{server.port}/"
    async with HttpClient(ssl_context=client_side) as client:
        assert (await client.send("GET", url, timeout_s=20)).body == b"https"
    async with HttpClient(ssl_context=ssl.create_default_context()) as client:
        with pytest.raises(RemoteError, match="certificate") as error:
            await client.send("GET", url, timeout_s=20)
        assert not was_sent(error.value)
    async with HttpClient(ssl_context=ssl.create_default_context(cafile=certificate)) as client:
        with pytest.raises(RemoteError):
            await client.send("GET", url, timeout_s=20)
    await server.stop()
    assert server.connections == 0
