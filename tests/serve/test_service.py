"""The service over real connections, with tiny models."""

import asyncio
import base64
import concurrent.futures
import contextlib
import gc
import gzip
import io
import json
import signal
import socket
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from contextlib import contextmanager

import httpx
import huggingface_hub
import numpy as np
import pages
import pytest
import tiny
import torch
import uvicorn
from openai_errors import check_error

from kakao_models import Embedder, ViTForImageClassification, cli, pipeline
from kakao_models.inference.relevance import Relevance
from kakao_models.serve import connections, service as serving
from kakao_models.serve.app import State, create_app
from kakao_models.serve.connections import Connection, stop_accepting
from kakao_models.serve.metrics import Metrics
from kakao_models.serve.schemas import ClassifyRequest, ContentPart, Refused
from kakao_models.serve.server import Server, _bound
from kakao_models.serve.service import Limits, Service


@contextmanager
def running(embedder, *, limits=None, drain=0.2, batching=None, **options):
    """A service on a free port of this machine: (client, server, service)."""
    state, metrics, made, said = State(), Metrics(), [], []

    def make():
        made.append(Service(embedder, "tiny", limits or Limits(), watch=metrics.batch, **(batching or {})))
        return made[0]

    app = create_app(make, metrics=metrics, state=state, **options)
    config = uvicorn.Config(app, http=Connection, log_level="error", lifespan="on")
    server = Server(config, state, drain, said.append)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not said:
        assert thread.is_alive()
        time.sleep(0.01)
    server.port, server.thread = listening.getsockname()[1], thread
    assert said == [f"http://127.0.0.1:{server.port}"]
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        try:
            yield client, server, made[0]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def embedder(align):
    return Embedder(align)


@pytest.fixture(scope="module")
def served(embedder):
    limits = Limits(max_inputs=20, max_labels=50, max_characters=1000, max_pixels=100_000)
    with running(embedder, limits=limits, max_body=300_000) as (client, _, service):
        yield client, service


@pytest.fixture(scope="module")
def client(served):
    return served[0]


def png(seed=0, **size) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed, **size).save(file, "PNG")
    return file.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def vectors(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return np.array([row["embedding"] for row in data], np.float32)


def test_embeddings_are_the_embedders(client, embedder):
    texts = ["a cat", "two dogs in the sea", "a cat"]
    answer = client.post("/v1/embeddings", json={"input": texts, "model": "tiny", "user": "me"})
    body = answer.json()
    assert body["object"] == "list" and body["model"] == "tiny" and body["data"][0]["object"] == "embedding"
    tokens = sum(len(ids) for ids in embedder.tokenizer(texts)["input_ids"])
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    np.testing.assert_allclose(vectors(answer), embedder.texts(texts, normalize=True), atol=1e-6)
    raw = client.post("/v1/embeddings", json={"input": "a cat", "normalize": False, "dimensions": 16})
    np.testing.assert_allclose(vectors(raw), embedder.texts(["a cat"]), rtol=1e-5, atol=1e-6)


def test_base64_holds_little_endian_float32(client):
    plain = vectors(client.post("/v1/embeddings", json={"input": ["a cat"]}))
    coded = client.post("/v1/embeddings", json={"input": ["a cat"], "encoding_format": "base64"}).json()
    row = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    assert np.array_equal(row, plain[0])


def test_images_in_every_form_beside_texts(client, embedder):
    data = png(3)
    plain = base64.b64encode(data).decode()
    inputs = [
        url(data), "a cat", {"image": plain}, {"text": "a dog"}, {"image": url(data)},
        {"type": "image_url", "image_url": {"url": url(data), "detail": "low"}}, {"image": plain[:40] + "\n" + plain[40:]},
    ]  # fmt: skip
    rows = vectors(client.post("/v1/embeddings", json={"input": inputs}))
    image = embedder.images([data], normalize=True)[0]
    for place in (0, 2, 4, 5, 6):
        np.testing.assert_allclose(rows[place], image, atol=1e-6)
    np.testing.assert_allclose(rows[[1, 3]], embedder.texts(["a cat", "a dog"], normalize=True), atol=1e-6)


def test_data_urls_of_every_spelling_are_images(client, embedder):
    data = base64.b64encode(png(3)).decode()
    heads = (
        "data:;base64,",
        " \n data:image/png;base64,",
        "data:application/octet-stream;base64,",
        "DATA:Image/PNG;BASE64,",
    )
    heads += ("data:image/png;name=a.png;base64,", "data:image/png;\nbase64,")
    urls = [head + data for head in heads]
    rows = vectors(client.post("/v1/embeddings", json={"input": [*urls, {"image_url": urls[0]}]}))
    assert np.abs(rows - embedder.images([png(3)], normalize=True)).max() < 1e-6
    texts = [
        "data: the new oil, they say",
        "see data:image/png, a type",
        "http is a protocol",
        "https://example.com is a site",
    ]
    rows = vectors(client.post("/v1/embeddings", json={"input": texts}))
    np.testing.assert_allclose(rows, embedder.texts(texts, normalize=True), atol=1e-6)


def test_bare_strings_that_look_like_images(embedder):
    plain = base64.b64encode(png(3)).decode()
    with running(embedder, limits=Limits(strings="images")) as (client, _, _):
        row = vectors(client.post("/v1/embeddings", json={"input": plain}))
        np.testing.assert_allclose(row, embedder.images([png(3)], normalize=True), atol=1e-6)
        check_error(client.post("/v1/embeddings", json={"input": "http://a.b/c.png"}), 400, "does not fetch URLs")
    with running(embedder, limits=Limits(strings="texts")) as (client, _, _):
        rows = vectors(client.post("/v1/embeddings", json={"input": [plain, "http://a.b/c.png"]}))
        np.testing.assert_allclose(rows, embedder.texts([plain, "http://a.b/c.png"], normalize=True), atol=1e-6)


def test_what_clients_send_beside_the_body(client, embedder):
    expected = embedder.texts(["a cat"], normalize=True)
    nulls = dict.fromkeys(("model", "encoding_format", "dimensions", "normalize", "user"))
    np.testing.assert_allclose(
        vectors(client.post("/v1/embeddings/", json={"input": "a cat"} | nulls)), expected, atol=1e-6
    )
    packed, headers = (
        gzip.compress(b'{"input": "a cat"}'),
        {"content-type": "application/json", "content-encoding": "gzip"},
    )
    answer = client.post("/v1/embeddings", content=packed, headers=headers)
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-6)
    for content, status, message in (
        (packed[:-9], 400, "not valid gzip"), (b"{}", 400, "not valid gzip"), (packed + packed, 400, "more data follows"), (gzip.compress(b" " * 400_000), 413, "longer than 300000"),
    ):  # fmt: skip
        check_error(client.post("/v1/embeddings", content=content, headers=headers), status, message)
    check_error(
        client.post("/v1/embeddings", content=b"", headers=headers | {"content-encoding": "br"}), 415, "expected gzip"
    )


def test_refused_bodies_are_freed_at_once(client):
    body = json.dumps({"input": "a" * 250_000}).encode()
    headers = {"content-type": "application/json"}
    check_error(client.post("/v1/embeddings", content=body, headers=headers), 400, "characters")
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        for _ in range(40):
            check_error(client.post("/v1/embeddings", content=body, headers=headers), 400, "characters")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 8 * len(body)


def test_health_tells_of_a_batch_that_does_not_end(embedder):
    with running(embedder, timeout=0.3) as (client, _, service):
        release = threading.Event()
        service.batcher._run = lambda kind, values: release.wait(20) and [None] * len(values)
        try:
            check_error(client.post("/v1/embeddings", json={"input": "a cat"}), 504, "no result within 0.3 s")
            while (
                health := client.get("/health")
            ).status_code == 200:  # the batch is a little younger than its request
                time.sleep(0.05)
            assert health.status_code == 500 and "a batch has run for" in health.json()["status"]
        finally:
            release.set()


def test_classify_is_the_pipeline(client, embedder):
    files, labels = [png(1), png(2)], ["cat", "dog", "car"]
    templates = ["a photo of a {}", "the {0}, {0} and {{{0}}}"]
    asked = {"input": [url(file) for file in files], "labels": labels, "templates": templates}
    wanted = pipeline("zero-shot-image-classification", embedder)(files, labels, hypothesis_template=templates)
    for _ in range(2):  # the second time the labels are known
        data = client.post("/v1/classify", json=asked).json()["data"]
        for row, result in zip(data, wanted, strict=True):
            assert [score["label"] for score in row["scores"]] == [score["label"] for score in result]
            np.testing.assert_allclose([s["score"] for s in row["scores"]], [s["score"] for s in result], atol=1e-5)
    best = client.post("/v1/classify", json={"input": url(files[0]), "labels": labels, "top_k": 1}).json()["data"]
    [result] = pipeline("zero-shot-image-classification", embedder)([files[0]], labels, top_k=1)
    assert [score["label"] for score in best[0]["scores"]] == [result[0]["label"]]


def test_labels_that_do_not_fit_are_left_out_as_in_the_pipeline(client, align, tmp_path):
    embedder, labels, files = Embedder(align), ["cat", "dog", "car"], [png(1), png(2)]
    guaranteed = {"coverage": {"0.9": -1.0}, "precision": {"0.5": 1.0}}
    embedder.relevance = Relevance((-1.0, 1.0), (0.0, 1.0), guarantees=guaranteed)
    classify = pipeline("zero-shot-image-classification", embedder)
    middle = sorted(entry["relevance"] for entry in classify(files[0], labels, min_relevance=0))[1]
    asked = {"input": [url(file) for file in files], "labels": labels}
    with running(embedder) as (calibrated, _, _):
        for least in (0, middle - 1e-6, 1, "coverage=0.9", "precision=0.5"):
            answer = calibrated.post("/v1/classify", json=asked | {"min_relevance": least, "top_k": 2}).json()
            for row, wanted in zip(answer["data"], classify(files, labels, min_relevance=least, top_k=2), strict=True):
                assert [score["label"] for score in row["scores"]] == [entry["label"] for entry in wanted]
                fits = [(score["score"], score["relevance"]) for score in row["scores"]]
                np.testing.assert_allclose(fits, [(entry["score"], entry["relevance"]) for entry in wanted], atol=1e-5)
        for wrong, said in ((2, "expected a probability"), ("precision=0.9", "at most 0.5. Ask for less"), (True, "")):
            refused = calibrated.post("/v1/classify", json=asked | {"min_relevance": wrong})
            check_error(refused, 400, said)
            assert refused.json()["error"]["param"] == "min_relevance"
        assert calibrated.get("/v1/models/tiny").json()["calibrated"] is True
    check_error(client.post("/v1/classify", json=asked | {"min_relevance": 0.5}), 400, "tiny has no calibration")
    assert client.get("/v1/models/tiny").json()["calibrated"] is False
    body = client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]["requestBody"]
    assert "min_relevance" in body["content"]["application/json"]["schema"]["properties"]


def test_a_calibration_of_other_weights_does_not_stop_the_service(align, tmp_path):
    Relevance((0.0,), (0.5,), "no base64").write(tmp_path / "other.json")
    embedder = Embedder(align, calibration=tmp_path / "other.json")
    with pytest.warns(match="probe is not readable"):
        service = Service(embedder, "tiny", Limits())
    asked = ClassifyRequest(input=url(png(1)), labels=["cat"], min_relevance=0.5)
    with pytest.raises(Refused, match="a calibration that can't be used") as refused:
        asyncio.run(service.classify(asked))
    assert str(tmp_path) not in str(refused.value)
    service.batcher.close(1)


def test_labels_that_the_model_can_not_tell_apart_are_warned_about(client):
    answer = client.post(
        "/v1/classify", json={"input": url(png(1)), "labels": ["cat", "고양이", "dog", "cat", "Dog"]}
    ).json()
    assert sorted(score["label"] for score in answer["data"][0]["scores"]) == ["Dog", "cat", "dog", "고양이"]
    repeated, *others = answer["warnings"]
    assert "'cat'" in repeated and "more than once" in repeated
    assert any("고양이" in words for words in others) and any("'Dog'" in words for words in others)
    assert "warnings" not in client.post("/v1/classify", json={"input": url(png(1)), "labels": ["cat", "dog"]}).json()


@pytest.mark.parametrize("make", [tiny.vit_folder, tiny.align_classifier_folder])
def test_a_classifiers_own_labels(make, tmp_path):
    classifier = Embedder(make(tmp_path))
    with running(classifier) as (client, _, _):
        got = client.post("/v1/classify", json={"input": url(png(5)), "top_k": 3}).json()["data"][0]["scores"]
        wanted = pipeline("image-classification", classifier)(png(5), top_k=3)
        assert [score["label"] for score in got] == [score["label"] for score in wanted]
        np.testing.assert_allclose([s["score"] for s in got], [s["score"] for s in wanted], atol=1e-5)
        check_error(client.post("/v1/classify", json={"input": url(png()), "labels": ["a"]}), 400, "classes of its own")
        check_error(client.post("/v1/embeddings", json={"input": "a cat"}), 400, "reads only images")


@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification"])
def test_a_classifiers_scores_are_the_pipelines_and_do_not_overflow(tmp_path, problem):
    folder = tiny.vit_folder(tmp_path, problem_type=problem)
    model = ViTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias[0] = -2000
    model.save_pretrained(folder)
    classifier = Embedder(folder)
    parts = [ContentPart(image=base64.b64encode(png(5)).decode())]
    service = Service(classifier, "tiny", Limits())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [scores], problems = asyncio.run(service.classify(ClassifyRequest(input=parts)))
        assert problems == []
    service.batcher.close()
    assert scores == pipeline("image-classification", classifier)(png(5), top_k=7)
    assert any(score["score"] < -1000 for score in scores) == (problem == "regression")


def test_models_health_ready_and_openapi(client):
    model = client.get("/v1/models").json()["data"][0]
    assert model["id"] == "tiny" and model["dimensions"] == 16 and model["max_tokens"] == 64
    assert client.get("/v1/models/tiny").json() == model
    check_error(client.get("/v1/models/a/b"), 404, "does not serve the model")
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    schema = client.get("/openapi.json").json()
    assert "input" in json.dumps(schema["paths"]["/v1/embeddings"]["post"]["requestBody"])
    check_error(client.get("/other"), 404, "Not Found")
    check_error(client.get("/v1/embeddings"), 405, "Method Not Allowed")


def test_metrics_count(client):
    before = client.get("/metrics").text
    client.post("/v1/embeddings", json={"input": "a cat"})
    after = client.get("/metrics").text
    name = 'kakao_requests_total{endpoint="/v1/embeddings",status="200"}'

    def count(text):
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    assert count(after) == count(before) + 1
    assert 'kakao_batch_size_count{kind="text"}' in after and "kakao_waiting_inputs 0.0" in after
    assert "/other" not in after  # addresses that a stranger makes up are no labels


HOSTILE = {
    "no JSON": (b"{", "Invalid JSON"),
    "NaN": (b'{"input": NaN}', "input"),
    "infinite": (b'{"input": "a", "dimensions": 1e999}', "dimensions"),
    "a number": (b'{"input": 3}', "input"),
    "null": (b"null", "body"),
    "a list": (b"[]", "body"),
    "deep": (b"[" * 100_000, "body"),
    "deep inputs": (b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", "body"),
    "no input": (b"{}", "input"),
    "empty": (b'{"input": []}', "at least one"),
    "blank": (b'{"input": " "}', "empty"),
    "token ids": (b'{"input": [[1, 2]]}', "token ids are not accepted"),
    "misspelt": (b'{"input": "a", "normalise": true}', "normalise"),
    "float for bool": (b'{"input": "a", "normalize": 1}', "normalize"),
    "format": (b'{"input": "a", "encoding_format": "hex"}', "encoding_format"),
    "dimensions": (b'{"input": "a", "dimensions": 8}', "got 8, but the embeddings of this model always have 16"),
    "surrogate": (b'{"input": "\\ud800"}', "body"),
    "invalid UTF-8": (b'{"input": "\xff"}', "body"),
    "many values": (b'{"input": [' + b"1," * 100_000 + b"1]}", "more than 100,000 values"),
    "many keys": (json.dumps(dict.fromkeys(map(str, range(20_000)), 1)).encode(), "input"),
    "many": (json.dumps({"input": ["a"] * 21}).encode(), "got 21 inputs, expected at most 20"),
    "long": (json.dumps({"input": "a" * 1001}).encode(), "got 1001 characters, expected at most 1000"),
    "two in one": (b'{"input": {"text": "a", "image": "b"}}', "expected one of text"),
    "none": (b'{"input": [{}]}', "expected one of text"),
    "URL": (b'{"input": {"image": "http://127.0.0.1/"}}', "does not fetch URLs"),
    "file": (b'{"input": {"image": "file:///etc/passwd"}}', "base64"),
    "path": (b'{"input": {"image": "/etc/passwd"}}', "not an image|base64"),
    "not base64": (b'{"input": "data:image/png;base64,?"}', "base64"),
    "not in base64": (b'{"input": "data:image/png,abc"}', "expected data:image"),
    "no image": (b'{"input": "data:image/png;base64,aGVsbG8="}', "not an image"),
    "empty image": (b'{"input": {"image": ""}}', "empty"),
    "an address": (
        b'{"input": ["a", "https://example.com/cat.jpg"]}',
        r"input\[1\]: this string looks like an address",
    ),
    "base64": (b'{"input": "iVBORw0KGgo' + b"A" * 60 + b'"}', r"input\[0\]: this string looks like an image in base64"),
    "a list in a list": (b'{"input": ["a", ["b"]]}', r"input\[1\]: expected a text or an image, got a list"),
    "another field": (b'{"input": [{"url": "b"}]}', r"input\[0\]: unknown field 'url'"),
    "a field's type": (b'{"input": {"image_url": {"url": 3}}}', r"input\.image_url: expected a string, got a number"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_embeddings(client, name):
    body, message = HOSTILE[name]
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    check_error(answer, 400, message)


def test_an_unknown_model_is_named_as_openai_does(client):
    error = check_error(client.post("/v1/embeddings", json={"input": "a", "model": "gpt"}), 404, "'gpt'")
    assert error["code"] == "model_not_found" and error["param"] == "model"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_bombs_and_broken_images_fail_by_themselves(client):
    check_error(client.post("/v1/embeddings", json={"input": url(bomb(60_000, 60_000))}), 400, "max_pixels = 100000")
    broken = client.post("/v1/embeddings", json={"input": ["a cat", url(png()), url(png()[:200])]})
    assert check_error(broken, 400, r"input\[2\]")["code"] == "image_not_read"
    assert client.post("/v1/embeddings", json={"input": url(png())}).status_code == 200


def test_large_images_are_decoded_alone(embedder, monkeypatch):
    sizes, iterate = [], embedder.iter_images

    def counted(some, **options):
        sizes.append(len(some))
        return iterate(some, **options)

    monkeypatch.setattr(embedder, "iter_images", counted)
    monkeypatch.setattr(serving, "_LARGE", 3000)  # those of png() have 2,880 pixels
    files = [png(0), png(1, width=80), png(2), png(3, width=80), png(4)[:100]]
    found = Service(embedder, "tiny", Limits())
    results = found._run("image", files)
    found.batcher.close()
    assert sorted(sizes) == [1, 1, 3] and isinstance(results[4], Refused)
    np.testing.assert_allclose(np.stack(results[:4]), embedder.images(files[:4]), atol=1e-6)


def test_labels_and_templates_are_checked(client):
    image = url(png())

    def asked(message, **fields):
        check_error(client.post("/v1/classify", json={"input": image} | fields), 400, message)

    asked("say what to choose from")
    asked("at least one of each", labels=[])
    asked("51 sentences, at most 50", labels=[str(i) for i in range(51)])
    asked("60 sentences", labels=list("abcdefghijklmnopqrst"), templates=["{}", "a {}", "b {}"])
    asked("labels", labels="cat")
    asked("empty", labels=["cat", ""])
    asked("top_k", labels=["cat"], top_k=0)
    for template in ("a cat", "{} {}", "{0.__class__}", "{:>1000000000}", "{", "}{}", "{}{x}"):
        asked("templates: .* must contain exactly one '{}' placeholder", labels=["cat"], templates=template)
    asked("has 5015 characters, expected at most 2000", labels=["c" * 1000], templates="{0}" * 5)
    texts = client.post("/v1/classify", json={"input": [image, "a cat"], "labels": ["cat"]})
    check_error(texts, 400, r"input\[1\] is not an image")


def test_bodies_are_bounded(client):
    big = b'{"input": "' + b"a" * 300_000 + b'"}'
    check_error(client.post("/v1/embeddings", content=big, headers={"content-type": "application/json"}), 413, "longer")

    def pieces():  # no length announced
        for _ in range(100):
            yield b"a" * 10_000

    answer = client.post("/v1/embeddings", content=pieces(), headers={"content-type": "application/json"})
    check_error(answer, 413, "longer than 300000 bytes")
    check_error(client.post("/v1/embeddings", content=b"input=a"), 415, "application/json")


def test_bodies_of_all_requests_are_bounded_together(embedder):
    with running(embedder, max_held=3000) as (client, _, _):
        for _ in range(3):  # what was refused is not counted any more
            big = client.post("/v1/embeddings", json={"input": ["a cat"] * 200})
            assert (
                check_error(big, 429, "fill the memory for bodies")["code"] == "overloaded"
                and big.headers["retry-after"] == "1"
            )
            assert client.post("/v1/embeddings", json={"input": ["a cat"] * 80}).status_code == 200


def test_a_key_is_wanted_of_all_but_health(embedder):
    with running(embedder, api_key=" secret\n") as (client, _, _):  # as a file may hold it
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for header in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "secret"},
            {"authorization": b"Bearer \xff"},
        ):
            error = check_error(client.post("/v1/embeddings", json={"input": "a"}, headers=header), 401, "key")
            assert error["type"] == "authentication_error"
        check_error(client.get("/metrics"), 401, "key")
        assert client.get("/v1/models", headers={"authorization": "bearer secret"}).status_code == 200
        right = {"authorization": "Bearer secret"}
        assert client.post("/v1/embeddings", json={"input": "a"}, headers=right).status_code == 200


def test_an_empty_key_is_no_key_and_a_taken_port_is_said(monkeypatch, capsys):
    def run(*options):
        with pytest.raises(SystemExit) as ended:
            cli.main(["serve", "align-small", *options])
        assert ended.value.code == 2
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Choose another --port" in run("--port", str(taken.getsockname()[1]))
    assert "the key is empty" in " ".join(run("--api-key", " ").replace("│", " ").split())
    monkeypatch.setenv("KAKAO_MODELS_API_KEY", "")
    assert "the key is empty" in " ".join(run().replace("│", " ").split())


def test_urls_are_fetched_from_public_addresses_alone(embedder):
    with running(embedder, limits=Limits(allow_urls=True)) as (client, _, _):
        for address in (client.base_url, "http://169.254.169.254/latest", "http://[::1]/", "ftp://example.com/a.png"):
            answer = client.post("/v1/embeddings", json={"input": {"image": str(address)}})
            check_error(answer, 400, "not have a public address|base64")
            assert "allow_private" not in answer.text and " is at " not in answer.text  # where a name of ours leads


def test_fetched_images_have_a_limit_for_all_requests_together(embedder, monkeypatch):
    file = png(1)
    monkeypatch.setattr(serving, "fetch_url", lambda url, **options: file)
    limits = Limits(allow_urls=True, max_fetched_together=3 * len(file))
    with running(embedder, limits=limits) as (client, _, service):
        asked = [{"image": f"https://example.com/{i}.png"} for i in range(4)]
        for _ in range(2):  # what a request held is given back
            answer = client.post("/v1/embeddings", json={"input": asked})
            check_error(answer, 429, "fetched images fill the memory")
            assert answer.headers["retry-after"]
            fetched = client.post("/v1/embeddings", json={"input": asked[:3]})
            np.testing.assert_allclose(
                vectors(fetched), [vectors(client.post("/v1/embeddings", json={"input": url(file)}))[0]] * 3, atol=1e-6
            )
        check_error(client.post("/v1/classify", json={"input": asked, "labels": ["a", "b"]}), 429, "fetched images")
        assert service._fetched == 0


class Held:
    """An embedder that does nothing until `go` is set, but warm up."""

    def __init__(self, embedder):
        self._embedder, self.runs, self.go = embedder, [], threading.Event()

    def __getattr__(self, name):
        return getattr(self._embedder, name)

    def texts_and_counts(self, texts, **options):
        self.runs.append(list(texts))
        assert texts == ["warm up"] or self.go.wait(20)
        return self._embedder.texts_and_counts(texts, **options)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post(client, text):
    return client.post("/v1/embeddings", json={"input": text})


def test_requests_at_the_same_time_share_batches(embedder):
    held = Held(embedder)
    with running(held) as (client, _, service), concurrent.futures.ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(post, client, f"cat {i % 10}") for i in range(16)]
        wait_until(lambda: service.batcher.waiting + sum(map(len, held.runs[1:])) == 16)
        held.go.set()
        rows = np.concatenate([vectors(answer.result()) for answer in waiting])
    np.testing.assert_allclose(rows, embedder.texts([f"cat {i % 10}" for i in range(16)], normalize=True), atol=1e-6)
    assert len(held.runs) <= 1 + 2 or max(map(len, held.runs)) > 1


def test_a_full_queue_answers_429_and_a_late_answer_504(embedder):
    held = Held(embedder)
    with running(held, batching={"max_items": 2, "batch_size": 1}, timeout=0.5) as (client, _, service):
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda i: post(client, f"cat {i}"), range(8)))
        codes = [answer.status_code for answer in answers]
        assert 429 in codes and 504 in codes and set(codes) == {429, 504}
        full = next(answer for answer in answers if answer.status_code == 429)
        assert check_error(full, 429, "waiting")["type"] == "rate_limit_error"
        assert 1 <= int(full.headers["retry-after"]) <= 60
        held.go.set()
        wait_until(lambda: service.batcher.waiting == 0)
        assert post(client, "a dog").status_code == 200
    assert len(held.runs) <= 3  # what was given up is not run


def test_a_client_that_leaves_costs_no_run(embedder):
    held = Held(embedder)
    with running(held, batching={"batch_size": 1}) as (client, server, service):
        gone = json.dumps({"input": "gone"}).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(gone)}"
        )
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            first = threads.submit(post, client, "first")
            wait_until(lambda: ["first"] in held.runs)
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode() + b"\r\n\r\n" + gone)
                wait_until(lambda: service.batcher.waiting == 1)
            with httpx.Client(base_url=client.base_url) as other:
                wait_until(lambda: 'status="499"' in other.get("/metrics").text)
            held.go.set()
            assert first.result().status_code == 200
        assert post(client, "last").status_code == 200
    assert held.runs == [["warm up"], ["first"], ["last"]]


def test_a_body_that_never_ends_is_given_up(embedder):
    with (
        running(embedder, body_timeout=0.2) as (_, server, _),
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        slow.settimeout(10)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def head(size: int) -> bytes:
    lines = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    )
    return lines.encode()


def test_a_client_that_sends_all_before_it_reads_gets_its_413(embedder):
    with running(embedder, max_body=10_000) as (_, server, _):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head(20_000_000) + b" " * 20_000_000)
            connection.settimeout(10)
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_clients_that_say_nothing_keep_nobody_out(embedder, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 8)
    with running(embedder) as (client, server, _), contextlib.ExitStack() as opened:
        for _ in range(30):
            slow = opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
            assert httpx.get(f"{client.base_url}/health").status_code == 200
        wait_until(lambda: len(server.server_state.connections) <= 8)
    monkeypatch.setattr(connections, "WAIT", 0.2)
    with running(embedder) as (_, server, _), socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(10)
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        assert slow.recv(10) == b""


def test_a_connection_that_waits_when_the_service_ends_is_answered(embedder):
    body = b'{"input": "a cat"}'
    with running(embedder, drain=0.0) as (client, server, _):
        with socket.create_connection(("127.0.0.1", server.port)) as late:
            wait_until(lambda: len(server.server_state.connections) > 0)
            server.servers[0].get_loop().call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
            wait_until(lambda: not server.servers[0].is_serving())
            late.sendall(head(len(body)) + body)
            late.settimeout(10)
            answer = late.recv(100_000)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_signal_ends_it_with_every_request_answered(embedder):
    held = Held(embedder)
    with running(held, batching={"batch_size": 2}, drain=1.0) as (client, server, service):
        with concurrent.futures.ThreadPoolExecutor(13) as threads:
            waiting = [threads.submit(post, client, f"cat {i}") for i in range(12)]
            wait_until(lambda: service.batcher.waiting + sum(map(len, held.runs[1:])) == 12)
            loop = server.servers[0].get_loop()
            loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
            wait_until(lambda: httpx.get(f"{client.base_url}/ready").status_code == 503)
            late = threads.submit(httpx.post, f"{client.base_url}/v1/embeddings", json={"input": "late"}, timeout=30)
            wait_until(lambda: service.batcher.waiting + sum(map(len, held.runs[1:])) == 13)
            wait_until(lambda: server.should_exit)
            held.go.set()
            answers = [future.result() for future in (*waiting, late)]
        server.thread.join(20)
        assert not server.thread.is_alive()
        assert [answer.status_code for answer in answers] == [200] * 13
        assert answers[-1].headers["connection"] == "close"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{client.base_url}/health")
    assert server.signal == signal.SIGTERM


def test_a_failure_of_the_model_is_500_without_its_words(embedder):
    class Broken(Held):
        def texts_and_counts(self, texts, **options):
            if texts == ["a cat"]:
                raise RuntimeError("secret of the inside")
            return self._embedder.texts_and_counts(texts, **options)

    with running(Broken(embedder)) as (client, _, _):
        answer = client.post("/v1/embeddings", json={"input": "a cat"})
        assert check_error(answer, 500, "its log says why")["type"] == "server_error"
        assert "secret" not in answer.text
        assert client.post("/v1/embeddings", json={"input": "a dog"}).status_code == 200


def test_what_clients_of_other_services_send(client, embedder):
    """The requests in the form that vLLM, Infinity, Jina, Cohere and Text Embeddings Inference document."""
    data, text = png(3), "a cat"
    image, words = embedder.images([data], normalize=True)[0], embedder.texts([text], normalize=True)[0]
    raw = base64.b64encode(data).decode()
    part = {"type": "image_url", "image_url": {"url": url(data)}}

    def openai(**body):
        return vectors(client.post("/v1/embeddings", json={"model": "tiny", **body}))

    def check(rows, expected):
        np.testing.assert_allclose(rows, np.stack(expected), atol=1e-6)

    # vLLM
    check(openai(messages=[{"role": "user", "content": [part]}], encoding_format="float"), [image])
    sent = {"continue_final_message": False, "add_special_tokens": False}
    check(openai(messages=[{"role": "user", "content": [{"type": "text", "text": text}]}], **sent), [words])
    check(openai(messages=[{"role": "user", "content": text}]), [words])
    # Infinity
    check(openai(input=[url(data), raw], modality="image", encoding_format="float"), [image, image])
    check(openai(input=[text, raw[:100]], modality="text"), embedder.texts([text, raw[:100]], normalize=True))
    # Jina
    sent = {"normalized": True, "embedding_type": "float", "task": "retrieval.query", "truncate": True}
    check(openai(input=[{"text": text}, {"image": raw}, {"image": url(data)}], **sent), [words, image, image])
    coded = client.post("/v1/embeddings", json={"input": text, "embedding_type": ["base64"]}).json()["data"][0]
    check(np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")[None], [words])
    np.testing.assert_allclose(openai(input=[text], normalized=False), embedder.texts([text]), rtol=1e-5, atol=1e-6)
    # Cohere
    sent = {"model": "tiny", "input_type": "search_document", "embedding_types": ["float", "base64"], "truncate": "END"}
    for body, expected in (
        ({"texts": [text]}, words), ({"images": [url(data)]}, image), ({"inputs": [{"content": [part]}]}, image)
    ):  # fmt: skip
        answer = client.post("/v2/embed", json=sent | body).json()
        check(answer["embeddings"]["float"], [expected])
        check(np.frombuffer(base64.b64decode(answer["embeddings"]["base64"][0]), "<f4")[None], [expected])
        assert answer["texts"] == body.get("texts", [])
    # Text Embeddings Inference, by curl and by huggingface_hub
    check(client.post("/embed", json={"inputs": text}).json(), [words])
    check(client.post("/embed", json={"inputs": [text, url(data)], "truncate": False}).json(), [words, image])
    hub = huggingface_hub.InferenceClient(str(client.base_url))
    check(hub.feature_extraction(text, normalize=True, truncate=True), [words])


@pytest.mark.parametrize("library", ["huggingface_hub", "openai"])
def test_the_clients_of_the_documentation_work(library, client):
    pytest.importorskip(library)
    here = {"http://127.0.0.1:8000": str(client.base_url).rstrip("/"), '"align-small"': '"tiny"'}
    pages.run(pages.block("serve.md", f"from {library}"), "serve.md", {}, here)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {}, "input: missing"),
        ("/v1/embeddings", {"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input and messages"),
        ("/v1/embeddings", {"messages": []}, "one message of the role user, got none"),
        ("/v1/embeddings", {"messages": [{"role": "system", "content": "a"}]}, "got system"),
        (
            "/v1/embeddings",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": "b"}]}
                ]
            },
            "got 2 parts",
        ),
        ("/v1/embeddings", {"input": ["a"], "modality": "audio"}, "modality"),
        ("/v1/embeddings", {"input": "a", "normalize": True, "normalized": False}, "normalize and normalized"),
        ("/v1/embeddings", {"input": "a " * 100, "truncate": False}, "tokens that the model reads"),
        ("/v1/embeddings", {"input": "a", "embedding_type": "binary"}, "embedding_type"),
        ("/embed", {"inputs": [1, 2]}, "token ids"),
        ("/embed", {"inputs": ["a", 0.5]}, "inputs[1]: expected a text or an image"),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, "prompt_name"),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}, "truncation_direction"),
        ("/embed", {"inputs": "a", "dimensions": 4}, "dimensions"),
        ("/v2/embed", {"texts": ["a"], "images": ["b"]}, "one of texts, images and inputs"),
        ("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types"),
        ("/v2/embed", {"texts": ["a " * 100], "truncate": "NONE"}, "tokens that the model reads"),
    ],
)
def test_what_other_services_can_and_this_one_cannot(client, path, body, words):
    answer = client.post(path, json=body)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


def test_the_page_of_documentation(client):
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        assert f"curl {str(client.base_url).rstrip('/')}/v1/embeddings" in answer.text
        for words in ("POST /v1/classify", "POST /embed", "GET /health", "encoding_format", "tiny"):
            assert words in answer.text
        assert "http" not in answer.text.replace(str(client.base_url).rstrip("/"), "")  # nothing from elsewhere


def test_a_second_service_on_a_port_is_told_before_its_model_is_loaded():
    first = _bound("127.0.0.1", 0)
    with (
        first,
        pytest.raises(OSError, match="cannot listen on this address: Address already in use. Choose another --port"),
    ):
        _bound("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, "uvloop"], ids=["asyncio", "uvloop"])
def test_connections_that_wait_are_accepted_at_the_end(new_loop):
    """uvloop accepts one connection in a turn of the loop: all of these wait when the service ends."""
    if new_loop == "uvloop":
        new_loop = pytest.importorskip("uvloop").new_event_loop
    accepted = []

    def busy() -> asyncio.Protocol:
        time.sleep(0.002)
        accepted.append(1)
        return asyncio.Protocol()

    async def end() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(busy, sock=listening)
        clients = [socket.create_connection(listening.getsockname()) for _ in range(40)]  # while the loop stands still
        await stop_accepting(listening)
        server.close()
        await asyncio.sleep(0.01)
        for client in clients:
            client.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(end())
    assert len(accepted) == 40
