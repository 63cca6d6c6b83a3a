"""A limit to the size of requests, however they are sent, and to the time that they take."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TooLarge(Exception):
    """A body has more bytes than it may have."""


class Disconnected(Exception):
    """A client went before its request was whole."""


class BodyLimit:
    """Reads a request's body before the application does.

    One of more than `limit` bytes is answered with 413, one that has not ended after `seconds` with 408.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        except Disconnected:
            return
        except TooLarge:
            refusal = JSONResponse({"error": f"the body is larger than {self.limit} bytes"}, 413)
            await refusal(scope, receive, send)
            return
        except asyncio.TimeoutError:
            sentence = f"the body has not come to its end within {self.seconds:g} seconds"
            await JSONResponse({"error": sentence}, 408, {"Connection": "close"})(scope, receive, send)
            return
        unread = True

        async def again() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, again, send)

    async def _read(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                raise TooLarge
        return body
