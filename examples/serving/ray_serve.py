r"""Ray Serve before several `dlc serve`: requests go to the replicas in turn, and to another one where a replica dies.

    pip install "ray[serve]"
    serve run --app-dir examples/serving --working-dir examples/serving ray_serve:application \
      bundle=/absolute/path/of/out dlc=/absolute/path/of/dlc replicas=2

Each replica of `Server` starts `dlc serve` on a free port of its machine and passes requests on. The `Gateway` answers at
Ray's port, 8000 unless it is changed. An answer of which nothing has gone to the client yet is asked of another replica
if its own dies: always where it is whole, and before the first part where it is streamed. A stream that breaks off later
ends with an error, as those of `dlc serve` do.
"""

import asyncio
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

# Ray's own statistics stay here.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import aiohttp
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

# What the gateway passes on; the rest concerns one connection alone.
ASKED = ("authorization", "content-type")
ANSWERED = ("content-type", "retry-after")
# A request is tried so often; a dead replica is noticed at once or within PERIOD seconds.
ATTEMPTS = 10
PERIOD = 1
# Seconds that answers under way have to end.
GRACE = 20

# What a replica, or the way to it, fails with; a builtin error passes from process to process.
DEAD = (ConnectionError, RayActorError, RayServeException)


def end_with_parent() -> None:
    """Lets Linux end the program where this replica is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@serve.deployment(
    max_ongoing_requests=64,
    health_check_period_s=PERIOD,
    graceful_shutdown_timeout_s=GRACE + 5,
    ray_actor_options={"num_cpus": 1},
)
class Server:
    """A `dlc serve` of its own."""

    async def __init__(self, command: list[str]) -> None:
        # A file, since nobody reads a pipe later.
        log = os.memfd_create("dlc-serve") if sys.platform == "linux" else os.open(os.devnull, os.O_RDWR)
        self.process = subprocess.Popen(command, stderr=log, preexec_fn=end_with_parent)
        self.log = os.fdopen(log, "rb")
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        self.base = await self.address()
        while not await self.is_ready():
            await asyncio.sleep(0.1)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    async def address(self) -> str:
        while not (found := re.search(r"listening on (http://\S+)", self.said())):
            self.check_health()
            await asyncio.sleep(0.05)
        return found[1]

    async def is_ready(self) -> bool:
        self.check_health()
        async with self.session.get(f"{self.base}/ready") as answer:
            return answer.status == 200

    def check_health(self) -> None:
        """Ray replaces this replica where it raises."""
        if self.process.poll() is not None:
            raise ConnectionError(f"dlc serve ended with {self.process.returncode}: {self.said()[-500:]}")

    async def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> AsyncIterator:
        """Status and headers, then the bytes as they come."""
        try:
            async with self.session.request(method, self.base + path, headers=headers, data=body or None) as answer:
                yield answer.status, {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
                async for piece in answer.content.iter_any():
                    yield piece
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error

    async def __del__(self) -> None:
        """Lets what is under way end."""
        self.process.terminate()
        await self.session.close()
        await asyncio.to_thread(self.process.wait)


@serve.deployment(max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
class Gateway:
    """Asks a replica, and another one where that dies."""

    def __init__(self, servers: DeploymentHandle) -> None:
        self.servers = servers.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        # The others are one server's own.
        if not path.startswith(("/v1/", "/openapi.json")):
            return problem(404, "there is no such route", "invalid_request_error")
        headers = {name: request.headers[name] for name in ASKED if name in request.headers}
        asked = (request.method, path, headers, await request.body())
        said = ""
        for attempt in range(ATTEMPTS):
            parts = self.servers.answer.remote(*asked)
            try:
                status, headers = await anext(parts)
                # A server that stops or still loads is as good as dead.
                if status == 503 and attempt + 1 < ATTEMPTS:
                    raise ConnectionError("503")
                if not headers.get("content-type", "").startswith("text/event-stream"):
                    body = b"".join([piece async for piece in parts])
                    return Response(body, status, headers)
                # A stream without a byte has broken off.
                first = await anext(parts, None)
                if first is None:
                    raise ConnectionError("an empty stream")
                return StreamingResponse(rest(first, parts), status, headers)
            except DEAD as error:
                said = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                parts.cancel()
                await asyncio.sleep(PERIOD * attempt / 4)
            except BaseException:
                parts.cancel()
                raise
        return problem(503, f"no replica answers: {said}")


async def rest(first: bytes, parts: AsyncIterator) -> AsyncIterator[bytes]:
    """A stream from its first bytes on; the text ends where nobody reads it any more."""
    try:
        yield first
        async for piece in parts:
            yield piece
    except DEAD:
        yield b"data: " + envelope("the replica that wrote this answer died").encode() + b"\n\n"
    finally:
        parts.cancel()


def envelope(message: str, kind: str = "server_error") -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})


def problem(status: int, message: str, kind: str = "server_error") -> Response:
    return Response(envelope(message, kind), status, media_type="application/json")


def application(arguments: dict[str, str]) -> serve.Application:
    """`bundle`; further `dlc`, the program, `name` of the model, `replicas`, and `flags` of `dlc serve`."""
    served = f"{arguments.get('name', 'model')}={arguments['bundle']}"
    flags = ["--port", "0", "--grace", str(GRACE), *arguments.get("flags", "").split()]
    command = [arguments.get("dlc", "dlc"), "serve", served, *flags]
    replicas = int(arguments.get("replicas", "2"))
    return Gateway.bind(Server.options(num_replicas=replicas).bind(command))
