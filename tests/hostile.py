"""A web server of this machine with pictures, and with everything that goes wrong on the web."""

import http.server
import io
import struct
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager

import tiny


def png(seed: int) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG that says it is 60,000 pixels wide and high."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        with self.server.lock:
            self.server.requests[self.path] += 1
            times = self.server.requests[self.path]
        getattr(self, f"do_{kind}", self.do_missing)(rest, times)

    def answer(self, data: bytes, length: int | None = None, kind: str = "image/png"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def redirect(self, where: str):
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def do_good(self, rest, times):
        time.sleep(self.server.delay)
        self.answer(png(int(rest)))

    def do_lying(self, rest, times):  # no picture, whatever the header says
        self.answer(b"<html>not found</html>")

    def do_html(self, rest, times):  # a picture, though the header says otherwise
        self.answer(png(1), kind="text/html")

    def do_short(self, rest, times):
        self.answer(png(0)[:200], len(png(0)))

    def do_broken(self, rest, times):
        self.answer(png(0)[:-60])

    def do_flaky(self, rest, times):
        self.answer(png(2)) if times >= int(rest) else self.send_error(503)

    def do_gone(self, rest, times):
        self.send_error(410)

    def do_missing(self, rest, times):
        self.send_error(404)

    def do_bomb(self, rest, times):
        self.answer(bomb())

    def do_huge(self, rest, times):
        self.answer(b"x", 10**12)

    def do_endless(self, rest, times):
        self.send_response(200)
        self.end_headers()
        for _ in range(10_000):
            self.wfile.write(bytes(65536))

    def do_slow(self, rest, times):
        self.send_response(200)
        self.end_headers()
        for byte in png(0):
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def do_loop(self, rest, times):
        self.redirect("/loop")

    def do_moved(self, rest, times):
        self.redirect("/good/3")

    def do_file(self, rest, times):
        self.redirect("file:///etc/passwd")

    def do_noise(self, rest, times):
        self.wfile.write(b"\x00\xff\r\n\r\nno HTTP")

    def do_hangup(self, rest, times):
        pass

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):  # clients that hang up are the point
        pass


@contextmanager
def hostile_server(delay: float = 0.0):
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.lock, server.delay = Counter(), threading.Lock(), delay
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
