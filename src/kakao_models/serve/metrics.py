"""Figures of the service for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("kakao_requests", "Answers", ["endpoint", "status"], registry=own)
        self.seconds = Histogram(
            "kakao_request_seconds", "From request to answer", ["endpoint"], buckets=_SECONDS, registry=own
        )
        self.inputs = Counter("kakao_inputs", "Texts and images that were run", ["kind"], registry=own)
        self.batches = Histogram("kakao_batch_size", "Inputs of a batch", ["kind"], buckets=_SIZES, registry=own)
        self.waited = Histogram(
            "kakao_batch_wait_seconds", "Waiting of a batch's first input", ["kind"], buckets=_SECONDS, registry=own
        )
        self.model = Histogram(
            "kakao_model_seconds", "Reading and running of a batch", ["kind"], buckets=_SECONDS, registry=own
        )
        self.waiting = Gauge("kakao_waiting_inputs", "Inputs in the queue", registry=own)
        self.tokens = Counter("kakao_text_tokens", "Tokens of texts", registry=own)

    def batch(self, kind: str, size: int, waited: float, seconds: float) -> None:
        self.inputs.labels(kind).inc(size)
        self.batches.labels(kind).observe(size)
        self.waited.labels(kind).observe(waited)
        self.model.labels(kind).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
