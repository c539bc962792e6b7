"""Images per second that `data download` gets from a server on this machine: its own cost, without a network.

    python benchmarks/download.py --pictures 2000 --threads 16

The pictures are the package's photographs, made so small that their shorter side has --side pixels. The server is another
process. Seconds of a core (user and system, of the downloading process) say on a busy machine what an idle one would take.
"""

import http.server
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path


class _Pictures(http.server.BaseHTTPRequestHandler):
    files: list[bytes] = []

    def do_GET(self):
        data = self.files[int(self.path.rpartition("/")[2]) % len(self.files)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def serve(files: list[bytes], port) -> None:
    _Pictures.files = files
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    port.send(server.server_port)
    server.serve_forever()


def photographs(side: int) -> list[bytes]:
    import kakao_models
    from kakao_models.data.shard import Options, stored
    from kakao_models.pixels.formats import list_images

    folder = Path(kakao_models.__file__).parent / "photos"
    return [stored(path.read_bytes(), Options(image_size=side, quality=90))[0] for path in list_images(folder)]


def main() -> None:
    from common import arguments, show  # here: the server's process imports this file, and common imports PyTorch

    options = arguments(__doc__.split("\n")[0], pictures=2000, threads=16, side=256)
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kakao_models.data.download import Download, download

    files, context, table = photographs(options.side), multiprocessing.get_context("spawn"), []
    receiver, sender = context.Pipe(False)
    server = context.Process(target=serve, args=(files, sender), daemon=True)
    server.start()
    where, mean = f"http://127.0.0.1:{receiver.recv()}", sum(map(len, files)) / len(files) / 1000
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "urls.parquet")
            pq.write_table(pa.table({"url": [f"{where}/{number}" for number in range(options.pictures)]}), source)
            for name, size in (("the server's bytes", None), (f"shorter side {options.side // 2}", options.side // 2)):
                chosen = Download(threads=options.threads, image_size=size, timeout=60.0, allow_private_addresses=True)
                before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
                outcome = download(source, Path(folder, name), chosen)
                after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                rates = [f"{outcome.successes / seconds:,.0f}", f"{outcome.successes / cpu:,.0f}"]
                table.append([name, f"{outcome.successes:,}", f"{seconds:.1f}", *rates])
    finally:
        server.terminate()
    title = f"{options.pictures:,} JPEGs of {mean:.0f} kB on average, {options.threads} threads, 1 process"
    show(title, ["kept", "pictures", "seconds", "a second", "per second of a core"], table)


if __name__ == "__main__":
    main()
