"""Load on `kakao-models serve`: latencies at rising concurrency, batching across requests against one input at a time, and
what a shutdown loses, the memory that large requests take, and whether memory grows.

    python benchmarks/serve.py --model align-small --requests 2000 --images 200
    python benchmarks/serve.py --requests 0 --images 0 --shutdowns 50
    python benchmarks/serve.py --requests 0 --images 0 --clients 40
    python benchmarks/serve.py --requests 0 --images 0 --minutes 10

Both services run at once on this machine, one of them idle while the other is measured, level by level in turns; the
clients run on the same cores. Each request holds one input; of "both", every eighth is an image. For the shutdown clients send one request after the other,
each on a connection it keeps, and SIGTERM comes in the midst of it: a request is lost if it was sent whole and got no
answer. For the memory, `--clients` send bodies of 30 MB at the same time, of four kinds in turns: broken files, texts where an
image should be, noise of 9 megapixels, and PNGs of 49 megapixels in one colour with 30 MB behind them.
"""

import asyncio
import base64
import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
from common import arguments, checkpoint, sentences, show
from PIL import Image

from kakao_models import AlignProcessor

LEVELS = (1, 8, 64, 256)


class Service:
    """`kakao-models serve` in a process of its own, on a port that the system chose."""

    def __init__(self, folder: str, *options: str):
        command = [sys.executable, "-m", "kakao_models.cli", "serve", folder, "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if line.startswith("kakao-models: http://"):
                self.port = int(line.rpartition(":")[2])
                break
        else:
            raise SystemExit("the service did not start")
        # Whatever it still says is read, so that it never waits for us.
        subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Client:
    """A connection that is kept: plain HTTP/1.1, so that the clients take little of the cores they share."""

    def __init__(self, port: int):
        self.port, self.reader = port, None

    async def post(self, body: bytes, path: str = "/v1/embeddings") -> int:
        """The status of the answer, 0 where the request was not taken: no connection, or not sent whole.

        Raises:
            ConnectionError, IncompleteReadError: it was sent, and no answer came.
        """
        try:
            if self.reader is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.writer.write(head.encode() + body)
            await self.writer.drain()
        except OSError:
            self.reader = None
            return 0
        status, headers = await self._head()
        await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.writer.close()
            self.reader = None
        return status

    async def _head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        return int(first.split()[1]), headers


async def load(port: int, bodies: list[bytes], concurrency: int) -> tuple[list[float], float]:
    """Seconds of each request, and of all together."""
    waiting, latencies = iter(bodies), []

    async def client() -> None:
        connection = Client(port)
        for body in waiting:
            start = time.perf_counter()
            status = await connection.post(body)
            latencies.append(time.perf_counter() - start)
            assert status == 200, status

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return latencies, time.perf_counter() - start


async def shutdown(service: Service, bodies: list[bytes], concurrency: int) -> dict[str, int]:
    """Counts the answers to clients that go on sending while the service ends."""
    counts = {"answered": 0, "refused": 0, "lost": 0}

    async def client(number: int) -> None:
        connection = Client(service.port)
        for turn in range(10_000):
            try:
                status = await connection.post(bodies[(number + turn) % len(bodies)])
            except (OSError, EOFError):
                counts["lost"] += 1
                return
            counts["answered" if status == 200 else "refused"] += 1
            if status == 0:
                return

    clients = [asyncio.ensure_future(client(number)) for number in range(concurrency)]
    await asyncio.sleep(1.0)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    assert service.process.wait(60) == 0
    return counts


async def flood(service: Service, bodies: list[bytes], clients: int) -> dict[str, int | float]:
    """Answers by status, and the most memory that the service had above what it had before, in MB."""
    statuses: dict[str, int | float] = {}
    start = most = resident(service)

    async def client(number: int) -> None:
        connection = Client(service.port)
        for turn in range(3):
            try:
                status = await connection.post(bodies[(number + turn) % len(bodies)])
            except (OSError, EOFError):
                status = 0
            statuses[f"answers {status}"] = statuses.get(f"answers {status}", 0) + 1

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, resident(service))
            await asyncio.sleep(0.02)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*map(client, range(clients)))
    watching.cancel()
    return dict(sorted(statuses.items())) | {"MB above the start": most - start}


def resident(service: Service) -> float:
    with open(f"/proc/{service.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def large() -> list[bytes]:
    """Bodies of 30 MB."""
    noise, plain = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 2400, 3), dtype=np.uint8)).save(
        noise, "PNG", compress_level=0
    )
    Image.new("RGB", (7000, 7000)).save(plain, "PNG")
    files = [bytes(22_000_000), noise.getvalue(), plain.getvalue().ljust(22_000_000, b"\0")]
    inputs = [{"image": base64.b64encode(file).decode()} for file in files] + [{"image": "no image " * 3_300_000}]
    return [json.dumps({"input": one}).encode() for one in inputs]


def requests(kind: str, count: int, vocabulary: list[str]) -> list[bytes]:
    if kind == "both":
        texts, images = (requests(part, count, vocabulary) for part in ("texts", "images"))
        return [images[index] if index % 8 == 0 else text for index, text in enumerate(texts)]
    if kind == "texts":
        texts = sentences(count, 4, 16, vocabulary=vocabulary)
        return [json.dumps({"input": text, "encoding_format": "base64"}).encode() for text in texts]
    made = [json.dumps({"input": url, "encoding_format": "base64"}).encode() for url in photographs(min(count, 32))]
    return [made[index % len(made)] for index in range(count)]


def photographs(count: int) -> list[str]:
    """JPEGs of 500 x 375 as data: URLs."""
    random, made = np.random.default_rng(0), []
    for _ in range(count):
        colours = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        file = io.BytesIO()
        colours.save(file, "JPEG")
        made.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return made


async def mixture(service: Service, minutes: float, vocabulary: list[str], clients: int = 64) -> list[list]:
    """Rows for each tenth of the time: answers by status, and the memory of the service."""
    urls = photographs(8)
    turns = [(body, "/v1/embeddings") for body in requests("both", 64, vocabulary)]
    for number, url in enumerate(urls):
        body = {"input": url, "labels": [f"label {number}", "a cat", "a dog"]}
        turns[8 * number + 1] = (json.dumps(body).encode(), "/v1/classify")
        turns[8 * number + 2] = (b'{"input": [1.5, {"image": "bm9uZQ=="}]}', "/v1/embeddings")  # refused
    statuses: dict[int, int] = {}
    start, rows = time.perf_counter(), []

    async def client(number: int) -> None:
        connection, turn = Client(service.port), number
        while time.perf_counter() - start < 60 * minutes:
            status = await connection.post(*turns[turn % len(turns)])
            statuses[status] = statuses.get(status, 0) + 1
            turn += 1

    working = [asyncio.ensure_future(client(number)) for number in range(clients)]
    for tenth in range(10):
        await asyncio.sleep(max(0.0, 6 * minutes * (tenth + 1) - (time.perf_counter() - start)))
        shown = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
        rows.append([f"{minutes * (tenth + 1) / 10:.1f}", shown, f"{resident(service):.0f}"])
    await asyncio.gather(*working)
    return rows


def main() -> None:
    options = arguments(__doc__, model="", requests=300, images=120, shutdowns=0, clients=0, minutes=0.0)
    folder = options.model or checkpoint(options.size)
    name = options.model or options.size
    vocabulary = [word for word in AlignProcessor.from_pretrained(folder).tokenizer.get_vocab() if word.isalpha()]
    services = {}
    if options.requests or options.images:
        services["batches"] = Service(folder)
        services["one by one"] = Service(folder, "--batch-size", "1", "--max-wait", "0")
    try:
        for kind, count in (("texts", options.requests), ("images", options.images), ("both", options.requests)):
            if not count or (kind == "both" and not options.images):
                continue
            bodies, rows = requests(kind, count, vocabulary), []
            for level in LEVELS:
                cells = []
                for service in services.values():
                    latencies, seconds = asyncio.run(load(service.port, bodies, level))
                    p50, p99 = np.percentile(np.array(latencies) * 1e3, (50, 99))
                    cells += [f"{p50:.0f}", f"{p99:.0f}", count / seconds]
                rows.append([level, *cells, cells[2] / cells[5]])
            columns = [f"{figure}, {way}" for way in services for figure in ("p50 ms", "p99 ms", "requests/s")]
            show(f"{kind}, {count} requests, {name}", ["clients", *columns, "times as many"], rows)
    finally:
        codes = [service.end() for service in services.values()]
    if codes:
        print(f"\nexit codes after SIGTERM: {codes}")
    if options.shutdowns:
        bodies, totals = requests("texts", 64, vocabulary), []
        for _ in range(options.shutdowns):
            totals.append(asyncio.run(shutdown(Service(folder), bodies, 64)))
            print(f"shutdown {len(totals)}/{options.shutdowns}: {totals[-1]}", file=sys.stderr, flush=True)
        rows = [[fate, sum(total[fate] for total in totals)] for fate in totals[0]]
        show(f"SIGTERM under load, {options.shutdowns} times, 64 clients, {name}", ["requests", ""], rows)
    if options.clients:
        service = Service(folder)
        rows = [list(row) for row in asyncio.run(flood(service, large(), options.clients)).items()]
        show(f"memory, {options.clients} clients with 3 bodies of 30 MB each, {name}", ["", ""], rows)
        service.end()
    if options.minutes:
        service = Service(folder)
        rows = asyncio.run(mixture(service, options.minutes, vocabulary))
        show(f"{options.minutes:g} minutes, mixed, 64 clients, {name}", ["minute", "answers by status", "MB"], rows)
        service.end()


if __name__ == "__main__":
    main()
