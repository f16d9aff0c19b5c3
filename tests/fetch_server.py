"""A local HTTP server that misbehaves on request."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable

Answer = Callable[["Handler", bytes], None]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        body, answers = self.server.files.get(self.path, (b"", [status(404)]))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self, body)

    def reply(self, code: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def ranged(etag: str = '"one"', most: int | None = None) -> Answer:
    """The whole file, or the part that is asked for of it; the whole file too where If-Range names another one.

    Of a part, no more than ``most`` bytes are sent, as servers may.
    """

    def answer(handler: Handler, body: bytes) -> None:
        wanted = handler.headers.get("Range", "")
        if not wanted or handler.headers.get("If-Range", etag) != etag:
            return handler.reply(200, body, ETag=etag)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return handler.reply(416, b"", Content_Range=f"bytes */{len(body)}")
        end = len(body) if most is None else min(start + most, len(body))
        told = f"bytes {start}-{end - 1}/{len(body)}"
        return handler.reply(206, body[start:end], ETag=etag, Content_Range=told)

    return answer


def whole(handler: Handler, body: bytes) -> None:
    """The whole file, whatever range is asked for."""
    handler.reply(200, body, ETag='"one"')


def unannounced(handler: Handler, body: bytes) -> None:
    """The whole file, without its length."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body)


def cut(size: int, **headers: str) -> Answer:
    """The beginning of the file; then the connection is closed."""
    return lambda handler, body: handler.reply(200, body[:size], len(body), **({"ETag": '"one"'} | headers))


def stalled(handler: Handler, body: bytes) -> None:
    """The beginning of the file; then nothing for longer than anyone waits."""
    handler.reply(200, body[:100], len(body), ETag='"one"')
    handler.server.over.wait(3)


def slow(handler: Handler, body: bytes) -> None:
    """The whole file, after some time."""
    handler.server.over.wait(0.15)
    whole(handler, body)


def misplaced(handler: Handler, body: bytes) -> None:
    """A part of the file, but from its beginning, whatever range is asked for."""
    handler.reply(206, body, ETag='"one"', Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")


def flipped(handler: Handler, body: bytes) -> None:
    """The file with one bit changed."""
    handler.reply(200, bytes([body[0] ^ 1]) + body[1:], ETag='"one"')


def status(code: int) -> Answer:
    return lambda handler, body: handler.reply(code, b"<html>an error page</html>")


def redirect(path: str) -> Answer:
    return lambda handler, body: handler.reply(302, b"", Location=path)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, tuple[bytes, list[Answer]]] = {}
        self.seen: list[tuple[str, dict]] = []
        self.over = threading.Event()

    def handle_error(self, *_):  # clients that hang up are what is tested
        pass

    def serve(self, path: str, body: bytes, *answers: Answer) -> str:
        """Answer requests for ``path`` in this order, the last one for ever; returns the address."""
        self.files[path] = (body, list(answers) or [ranged()])
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        """The Range header of every request."""
        return [headers.get("Range") for _, headers in self.seen]
