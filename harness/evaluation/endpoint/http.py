"""The HTTP client for endpoints: no attempt takes longer, reads more or starts earlier than it may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2

from harness.evaluation.endpoint.money import BYTES_PER_TOKEN
from harness.evaluation.endpoint.options import EndpointOptions

MOST_BYTES = 16 << 20  # of a response's body, decompressed; log-probs of a long answer take about one MiB
ENCODED = ("content-encoding", "content-length", "transfer-encoding")  # headers that describe the body as it was sent


class BoundedClient(httpx2.AsyncClient):
    """A client whose attempts start within the per-minute limits, and end within `timeout` seconds.

    The library's own timeouts hold for each read alone, so that an endpoint could send one byte at a time for ever.
    """

    def __init__(self, options: EndpointOptions):
        limits = httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        super().__init__(timeout=options.timeout, limits=limits, follow_redirects=False)
        self._seconds = options.timeout
        self._waits = []
        if options.requests_per_minute:
            self._waits.append(_pacer(options.requests_per_minute, lambda request: 1))
        if options.tokens_per_minute:
            self._waits.append(
                _pacer(options.tokens_per_minute, lambda request: len(request.content) / BYTES_PER_TOKEN)
            )

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options) -> httpx2.Response:
        """Send a request and return its whole response, also where the caller wants to read it later (`stream`).

        Raises `httpx2.ReadTimeout` or, for a body of more than `MOST_BYTES`, `httpx2.ReadError`.
        """
        for wait in self._waits:
            await wait(request)
        try:
            return await asyncio.wait_for(self._whole(request, options), self._seconds)
        except asyncio.TimeoutError:  # in Python 3.10 not yet the built-in TimeoutError
            raise httpx2.ReadTimeout(f"no whole answer after {self._seconds:g} seconds", request=request) from None

    async def _whole(self, request: httpx2.Request, options: dict) -> httpx2.Response:
        response = await super().send(request, stream=True, **options)
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise httpx2.ReadError(f"the answer is longer than {MOST_BYTES >> 20} MiB", request=request)
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in ENCODED]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=request)


def _pacer(per_minute: float, amount: Callable[[httpx2.Request], float]) -> Callable[..., Awaitable[None]]:
    """Return a function that waits until a request of this `amount` may start."""
    free_at = 0.0

    async def wait(request: httpx2.Request) -> None:
        nonlocal free_at
        now = asyncio.get_running_loop().time()
        start = max(now, free_at)
        free_at = start + amount(request) * 60 / per_minute
        await asyncio.sleep(start - now)

    return wait
