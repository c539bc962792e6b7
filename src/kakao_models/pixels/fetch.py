"""Downloads one file from an untrusted URL.

Standard library only. Proxies of the environment are not used: behind one, the address that is finally connected to
could not be checked.
"""

import contextlib
import functools
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from urllib.parse import quote, urljoin, urlsplit

MAX_REDIRECTS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is reached
# Special by IANA's registries, and not yet so in every Python's ipaddress
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "3fff::/20")))


class FetchError(ValueError):
    """A download that failed or was refused; the message says why."""


def is_address(name: str) -> bool:
    """Whether a name is a URL rather than a path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name))


def fetch_url(
    url: str,
    *,
    timeout: float = 10.0,
    max_bytes: int = 64 * 2**20,
    allow_private_addresses: bool = False,
    stop: Future | None = None,
) -> bytes:
    """The body behind an http or https URL.

    Args:
        timeout: seconds for everything together: name look-up, connections, redirects and body.
        max_bytes: a longer body is refused, from its announced length or while it streams.
        allow_private_addresses: also connect to loopback, private, link-local and reserved addresses.
        stop: when it is done, the download is cancelled.

    Raises:
        FetchError: for any failure. At most 5 redirects are followed, and each is checked like the first address.
    """
    # One deadline for all steps needs a second thread: a name look-up cannot be interrupted, and a server that sends
    # a byte now and then never runs into the timeout of a socket.
    download = _Download(timeout, max_bytes, allow_private_addresses)
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(download.get(url))
        except BaseException as error:  # noqa: BLE001  raised again by future.result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="kakao-models-fetch").start()
    try:
        done, _ = wait([future, stop] if stop else [future], timeout, FIRST_COMPLETED)
        if done and future not in done:
            raise FetchError("the download was cancelled")
        return future.result(0)
    except FetchError:
        raise
    except TimeoutError as error:
        raise FetchError(f"no complete response within {timeout:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"download failed: {error or type(error).__name__}") from error
    finally:
        download.abandon()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, seen through NAT64 and 6to4 addresses that embed IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip in _NAT64:
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    elif ip.version == 6 and ip.sixtofour:
        ip = ip.sixtofour
    special = ip.is_multicast or ip.is_reserved or (ip.version == 6 and ip.is_site_local)
    return (
        ip.is_global and not special and not any(ip in network for network in _SPECIAL if network.version == ip.version)
    )


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads every root certificate: tens of milliseconds


class _Download:
    def __init__(self, timeout: float, max_bytes: int, allow_private_addresses: bool):
        self.timeout, self.max_bytes, self.allow_private = timeout, max_bytes, allow_private_addresses
        self.deadline = time.monotonic() + timeout
        self.sockets: list[socket.socket] = []

    def abandon(self) -> None:
        """Closes all open connections, and wakes those that wait."""
        self.deadline = 0.0
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # also of a TLS socket: no goodbye is awaited
            with contextlib.suppress(OSError):
                sock.close()

    def remaining(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def get(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            connection = self.request(url)
            with contextlib.closing(connection):
                response = connection.getresponse()
                location = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and location:
                    url = urljoin(url, location)
                    continue
                if response.status != 200:
                    raise FetchError(f"the server answered {response.status} {response.reason}")
                return self.body(response)
        raise FetchError(f"more than {MAX_REDIRECTS} redirects, the last one to {url[:200]!r}")

    def request(self, url: str) -> http.client.HTTPConnection:
        """Sends the request for `url` over a connection to a checked address."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError(f"expected an http or https URL with a host, got {url[:200]!r}")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        sock = self.connect(parts.hostname, port)
        if secure:
            sock = _tls().wrap_socket(sock, server_hostname=parts.hostname, do_handshake_on_connect=False)
            self.keep(sock)
            sock.do_handshake()
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname, port)
        connection.sock = sock
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~") if parts.query else ""
        )
        connection.request("GET", target, headers={"User-Agent": "kakao-models", "Accept": "image/*,*/*;q=0.1"})
        return connection

    def connect(self, host: str, port: int) -> socket.socket:
        """A socket to the first address of the host that may be connected to and answers.

        The name is looked up once, and what is checked is what is connected to: a name server that gives another
        answer the second time (DNS rebinding) is never asked a second time.
        """
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise FetchError(f"no address found for host {host!r} ({error})") from error
        failure: Exception | None = None
        for family, kind, protocol, _, address in addresses:
            if not (self.allow_private or is_public(address[0])):
                failure = failure or FetchError(
                    f"host {host!r} is at {address[0]}, which is not a public address; "
                    "pass allow_private_addresses=True to allow it"
                )
                continue
            sock = socket.socket(family, kind, protocol)
            self.keep(sock)
            try:
                sock.connect(address)
                return sock
            except OSError as error:
                failure = error
        raise failure or FetchError(f"no address found for host {host!r}")

    def keep(self, sock: socket.socket) -> None:
        self.sockets.append(sock)
        sock.settimeout(self.remaining())

    def body(self, response: http.client.HTTPResponse) -> bytes:
        announced = response.length  # None when chunked or until the connection closes
        if announced is not None and announced > self.max_bytes:
            raise FetchError(f"response too large: {announced} bytes (max_bytes = {self.max_bytes})")
        data = bytearray()
        while chunk := response.read(65536):
            data += chunk
            if len(data) > self.max_bytes:
                raise FetchError(f"response too large (max_bytes = {self.max_bytes})")
        if announced is not None and len(data) < announced:
            raise FetchError(f"the connection closed after {len(data)} of {announced} bytes")
        return bytes(data)
