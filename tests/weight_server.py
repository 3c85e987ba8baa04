"""A server of weight files on 127.0.0.1 that also behaves as badly as servers and networks do."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PAGE = b'<!DOCTYPE html><html>log in</html>'


class WeightServer(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path; the first part of another path says what goes wrong with ``content``."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.content = content
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WeightServer
    protocol_version = 'HTTP/1.0'  # without a length, the end of the connection ends the file

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.answer(with_content=True)

    def answer(self, *, with_content: bool) -> None:
        kind = self.path.split('/')[1]
        content = self.server.files.get(self.path, None if self.server.files else self.server.content)
        content = {'login': PAGE, 'gone': None}.get(kind, content)
        if content is None:
            self.send_response(404)
            self.send_header('X-Error-Code', 'EntryNotFound')  # as the hub says it
            self.end_headers()
            return
        self.send_response(200)
        if kind != 'endless':
            self.send_header('Content-Length', str(len(content) + 7 * (kind == 'more')))
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')  # these two for huggingface_hub
        self.send_header('X-Repo-Commit', 40 * '1')
        self.end_headers()
        if kind == 'slow':
            time.sleep(1)
        if with_content:
            torn = kind == 'torn' or self.path.startswith('/endless/torn')
            self.wfile.write(content[: len(content) // 2] if torn else content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[WeightServer]:
    with WeightServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
