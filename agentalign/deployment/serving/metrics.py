"""What a server did, for Prometheus. Surprise: no figure has a client's words in its labels; the versions that answer are ours."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agentalign.deployment.serving.worker import Worker

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server."""

    def __init__(self, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "agentalign_requests", "Chat requests by version and HTTP status", ["adapter", "status"], registry=self._registry
        )
        self.prompt_tokens = Counter("agentalign_prompt_tokens", "Tokens of prompts", ["adapter"], registry=self._registry)
        self.cached_tokens = Counter(
            "agentalign_cached_tokens", "Tokens of prompts that were not computed", ["adapter"], registry=self._registry
        )
        self.completion_tokens = Counter("agentalign_completion_tokens", "Tokens written", ["adapter"], registry=self._registry)
        self.malformed = Counter("agentalign_malformed_calls", "Turns whose call could not be read", ["adapter"], registry=self._registry)
        self.first_token = Histogram(
            "agentalign_first_token_seconds", "From request to first token", registry=self._registry, buckets=SECONDS
        )
        self.duration = Histogram("agentalign_request_seconds", "From request to last token", registry=self._registry, buckets=SECONDS)
        Gauge("agentalign_running", "Requests in the batch", registry=self._registry).set_function(lambda: worker.running)
        Gauge("agentalign_waiting", "Requests that wait for a row", registry=self._registry).set_function(lambda: worker.waiting)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
