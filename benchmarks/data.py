"""Curation out of core: synthetic rows like COYO's through filters, statistics and duplicates, in bounded memory.

    python benchmarks/data.py --rows 100000000 --memory 2GB

Each measurement is a process of its own; its peak of resident memory is the operating system's figure. Seconds of a core
(user and system) say on a busy machine what an idle one would take. --source FOLDER takes rows that are there.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

RECIPES = {
    "filters of rows (7)": ("size", "aspect", "nsfw", "length", "words", "watermark", "clip-l14:min=0.2"),
    "text-frequency, exact": ("text-frequency",),
    "text-frequency, 32-bit digests": ("text-frequency",),
    "dedup on (pHash, text)": ("dedup",),
    "COYO's recipe": ("size", "aspect", "nsfw", "length", "words", "text-frequency", "dedup"),
    "statistics": (),
    "ALIGN's recipe": (
        "size:strict=true",
        "aspect:strict=true",
        "texts-per-image",
        "images-per-text",
        "rare-tokens:top=1000000",
        "unigrams",
    ),
}

# Columns of COYO-700M. A tenth of the rows are doubles of (pHash, text); of the others a third of the texts and of the
# images are there several times, and one text in a hundred is one of 300
_ROWS = """
SELECT id, 'https://example.com/images/' || hash(image) || '.jpg' AS url, text,
       width::INTEGER AS width, height::INTEGER AS height, printf('%016x', hash(image)) AS image_phash,
       length(text)::INTEGER AS text_length, words::INTEGER AS word_count, (words * 1.4)::INTEGER AS num_tokens_bert,
       (words * 1.5)::INTEGER AS num_tokens_gpt, (3 * random())::INTEGER AS num_faces,
       (0.29 + 0.08 * (random() - 0.5))::FLOAT AS clip_similarity_vitb32,
       (0.25 + 0.1 * (random() - 0.5))::FLOAT AS clip_similarity_vitl14, (0.6 * random() ** 8)::FLOAT AS nsfw_score_opennsfw2,
       (0.6 * random() ** 8)::FLOAT AS nsfw_score_gantman, random()::FLOAT AS watermark_score,
       (4.8 + 2 * (random() - 0.5))::FLOAT AS aesthetic_score_laion_v2
FROM (SELECT *, array_to_string(list_transform(range(words), lambda i:
               'word' || (power(hash(seed, i) / 18446744073709551616.0, 4) * 200000)::INTEGER), ' ') AS text
      FROM (SELECT id, image, seed, (2 + hash(seed, 'n') % 19)::BIGINT AS words, width, height
            FROM (SELECT id, 190 + 900 * random() AS width, 190 + 700 * random() AS height,
                         hash(CASE WHEN hash(pair, 'a') % 10 < 3 THEN hash(pair, 'b') % ({rows} // 9) ELSE pair END, 'image')
                         AS image,
                         hash(CASE WHEN hash(pair, 'c') % 100 = 0 THEN hash(pair, 'd') % 300
                                   WHEN hash(pair, 'e') % 10 < 3 THEN hash(pair, 'f') % ({rows} // 7) ELSE pair END) AS seed
                  FROM (SELECT range AS id, CASE WHEN random() < 0.1 THEN floor({rows} * random())::BIGINT ELSE range END
                        AS pair
                        FROM range({start}, {stop})))))
"""


def generate(rows: int, folder: Path, threads: int) -> None:
    import duckdb

    folder.mkdir()
    connection = duckdb.connect(config={"threads": threads, "memory_limit": "2GB"})
    connection.execute("SELECT setseed(0.5)")
    step = 2_500_000
    for number, start in enumerate(range(0, rows, step)):
        query = _ROWS.format(rows=rows, start=start, stop=min(rows, start + step))
        connection.execute(f"COPY ({query}) TO '{folder}/part-{number:05}.parquet' (COMPRESSION zstd)")


def measure(name: str, source: Path, work: Path, memory: str, threads: int, result) -> None:
    from kakao_models.data.curate import curate
    from kakao_models.data.recipes import parse_flags
    from kakao_models.data.stats import summarize
    from kakao_models.samples.tables import connect, open_table

    start = time.perf_counter()
    connection = connect(memory_limit=memory, threads=threads, spill=work / "spill")
    table = open_table(connection, source)
    if RECIPES[name]:
        bits = 32 if "digests" in name else None
        account = curate(connection, table, parse_flags(RECIPES[name]), work / "out", digest_bits=bits)
        rows, kept = account.rows, account.kept
    else:
        rows = kept = summarize(table).rows
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    result.send((rows, kept, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20))


def main() -> None:
    from common import arguments, show  # here: the measured processes import this file, and common imports PyTorch

    options = arguments(
        __doc__.split("\n")[0], rows=10_000_000, memory="4GB", threads=os.cpu_count() or 1, work="", only="", source=""
    )
    folder = Path(tempfile.mkdtemp(prefix="kakao-models-data-", dir=options.work or None))
    context = multiprocessing.get_context("spawn")
    table, found = [], {}
    try:
        source = Path(options.source or folder / "source")
        if not options.source:
            generate(options.rows, source, options.threads)
        size = sum(path.stat().st_size for path in source.iterdir()) / 2**30
        for name in [name for name in RECIPES if options.only in name]:
            receiver, sender = context.Pipe(False)
            arguments_ = (name, source, folder, options.memory, options.threads, sender)
            process = context.Process(target=measure, args=arguments_)
            process.start()
            sender.close()
            rows, kept, seconds, cpu, peak = receiver.recv()
            process.join()
            shutil.rmtree(folder / "out", ignore_errors=True)
            found[name] = {"rows": rows, "kept": kept, "seconds": seconds, "cpu": cpu, "peak_gib": peak}
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
            rates = [f"{rows / seconds:,.0f}", f"{rows / cpu:,.0f}"]
            table.append([name, f"{kept / rows:.1%}", f"{seconds:.0f}", *rates, f"{peak:.2f}"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    title = f"{rows:,} rows ({size:.1f} GiB of Parquet), memory limit {options.memory}, {options.threads} threads"
    show(title, ["run", "kept", "seconds", "rows/s", "rows per second of a core", "peak RSS, GiB"], table)


if __name__ == "__main__":
    main()
