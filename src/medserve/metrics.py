"""What the service counts, for Prometheus: labels are declared names and fixed words, never what a caller wrote.

A model's name is a label because it is declared; an unknown name never comes this far. Routes are templates, methods
those of HTTP, outcomes the codes of our own errors. So the number of series is bounded by what is installed.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from medserve import __version__

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that says when it began, which nobody reads

REGISTRY = CollectorRegistry()
"""Of our own: what a library adds to the process-wide one is not ours to show."""

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds in seconds: the time between two tokens, from a GPU's to a laptop's."""
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Upper bounds in seconds: a first token, an answer, a report or a load, up to the longest wait for an answer."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"


def _counter(name: str, words: str, *labels: str) -> Counter:
    return Counter(name, words, labels, namespace="medserve", registry=REGISTRY)


def _histogram(name: str, words: str, buckets: Sequence[float], *labels: str) -> Histogram:
    return Histogram(name, words, labels, namespace="medserve", registry=REGISTRY, buckets=buckets)


Info("build", "The version that runs.", namespace="medserve", registry=REGISTRY).info({"version": __version__})

REQUESTS = _counter(
    "http_requests", "Requests answered, by route template, method and status.", "route", "method", "status"
)
REQUEST_SECONDS = _histogram(
    "http_request_duration_seconds", "From a request's head to the end of its answer.", SLOW, "route", "method"
)
REQUESTS_OPEN = Gauge(
    "http_requests_in_progress", "Requests that are not answered yet.", namespace="medserve", registry=REGISTRY
)

ANSWERS = _counter(
    "answers", "Answers ended, by how: stop, length, cancelled or the code of an error.", "model", "outcome"
)
FIRST_TOKEN_SECONDS = _histogram(
    "time_to_first_token_seconds",
    "From asking a loaded model to the first piece of its answer, with the wait for a place.",
    SLOW,
    "model",
)
BETWEEN_SECONDS = _histogram(
    "inter_token_latency_seconds", "Between two pieces of one answer; a piece is mostly one token.", QUICK, "model"
)
ANSWER_SECONDS = _histogram(
    "answer_duration_seconds", "From asking a loaded model to the end of its answer.", SLOW, "model"
)
PROMPT_TOKENS = _counter("prompt_tokens", "Tokens of prompts, those of pictures and reused ones included.", "model")
COMPLETION_TOKENS = _counter("completion_tokens", "Tokens of answers.", "model")
CACHED_TOKENS = _counter("cached_tokens", "Tokens of prompts whose work was reused.", "model")
IMAGE_TOKENS = _counter("image_tokens", "Tokens of prompts that stand for pictures.", "model")
PICTURES = _counter("pictures", "Pictures in prompts.", "model")
ENCODES = _counter("vision_encodes", "Pictures that went through the vision encoder.", "model")
REUSED_PICTURES = _counter("pictures_reused", "Pictures whose vision encoding was reused.", "model")

LOAD_SECONDS = _histogram("model_load_seconds", "How long loads took that ended well.", SLOW, "model")
LOADS = _counter("model_loads", "Loads that ended well.", "model")
LOAD_FAILURES = _counter("model_load_failures", "Loads that failed, by the error's code.", "model", "code")
CRASHES = _counter("model_crashes", "Times that a loaded model's worker was found dead.", "model")
UNLOADS = _counter("model_unloads", "Loaded models given back: idle, making room, or on request.", "model")

REPORTS = _counter("reports", "Reports made, by workflow.", "workflow", "needs_review")
REPORT_SECONDS = _histogram("report_duration_seconds", "How long reports took to make.", SLOW, "workflow")
FLAGS = _counter("quality_flags", "Flags on reports, each counted once a report.", "workflow", "flag")

JOBS = _counter("jobs_ended", "Jobs that ended in this process, by kind and how.", "kind", "state")

OF_MODELS = (
    ANSWERS,
    FIRST_TOKEN_SECONDS,
    BETWEEN_SECONDS,
    ANSWER_SECONDS,
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
    CACHED_TOKENS,
    IMAGE_TOKENS,
    PICTURES,
    ENCODES,
    REUSED_PICTURES,
    LOAD_SECONDS,
    LOADS,
    LOAD_FAILURES,
    CRASHES,
    UNLOADS,
)


class Usage(Protocol):
    """Token counts of one answer, as `generation.Usage` has them."""

    @property
    def prompt(self) -> int: ...
    @property
    def completion(self) -> int: ...
    @property
    def cached(self) -> int: ...
    @property
    def image(self) -> int: ...
    @property
    def encodes(self) -> int: ...


@dataclass
class Tally:
    """What one HTTP request took of models, for its line in the log; added up over all its answers."""

    model: str = ""
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    image: int = 0


TALLY: ContextVar[Tally | None] = ContextVar("medserve_tally", default=None)
"""The request that is being served; None where there is none, as in a background job."""


class Answer:
    """One answer of a declared model, measured from here until `ended`; `pictures` stand in its prompt."""

    def __init__(self, model: str, pictures: int) -> None:
        self.model = model
        self.usage: Usage | None = None
        self.first_seconds: float | None = None
        self._pictures = pictures
        self._between = BETWEEN_SECONDS.labels(model)  # looked up once, not for every token
        self._began = self._last = perf_counter()

    def wrote(self) -> None:
        """A piece of the answer has come."""
        now = perf_counter()
        if self.first_seconds is None:
            self.first_seconds = now - self._began
            FIRST_TOKEN_SECONDS.labels(self.model).observe(self.first_seconds)
        else:
            self._between.observe(now - self._last)
        self._last = now

    def ended(self, outcome: str) -> None:
        """The answer is over: `outcome` is why it ended, or the code of the error that ended it."""
        ANSWERS.labels(self.model, outcome).inc()
        ANSWER_SECONDS.labels(self.model).observe(perf_counter() - self._began)
        if self.usage is not None:
            took(self.model, self.usage, self._pictures)


def took(model: str, usage: Usage, pictures: int) -> None:
    """What one answer, or one scoring of labels, took of a model; its prompt showed so many pictures."""
    PROMPT_TOKENS.labels(model).inc(usage.prompt)
    COMPLETION_TOKENS.labels(model).inc(usage.completion)
    CACHED_TOKENS.labels(model).inc(usage.cached)
    if pictures:
        IMAGE_TOKENS.labels(model).inc(usage.image)
        PICTURES.labels(model).inc(pictures)
        ENCODES.labels(model).inc(usage.encodes)
        REUSED_PICTURES.labels(model).inc(max(0, pictures - usage.encodes))
    if (tally := TALLY.get()) is not None:
        tally.model = model
        tally.prompt += usage.prompt
        tally.completion += usage.completion
        tally.cached += usage.cached
        tally.image += usage.image


def method_of(method: str) -> str:
    """The method of a request as it may be a label: one that HTTP does not know is any word."""
    return method if method in METHODS else OTHER_METHOD


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """A request is over; `route` is its template, "" when none matched."""
    place = route or "unmatched"
    known = method_of(method)
    REQUESTS.labels(place, known, str(status)).inc()
    REQUEST_SECONDS.labels(place, known).observe(seconds)


def loaded(model: str, seconds: float) -> None:
    """A model has been loaded."""
    LOADS.labels(model).inc()
    LOAD_SECONDS.labels(model).observe(seconds)


def load_failed(model: str, code: str) -> None:
    """A model could not be loaded, for the reason that has this code."""
    LOAD_FAILURES.labels(model, code).inc()


def crashed(model: str) -> None:
    """The worker of a loaded model was found dead."""
    CRASHES.labels(model).inc()


def unloaded(model: str) -> None:
    """A loaded model was given back."""
    UNLOADS.labels(model).inc()


def reported(workflow: str, flags: Iterable[str], *, needs_review: bool, seconds: float) -> None:
    """A report was made, with these flags."""
    REPORTS.labels(workflow, "true" if needs_review else "false").inc()
    REPORT_SECONDS.labels(workflow).observe(seconds)
    for flag in flags:
        FLAGS.labels(workflow, str(flag)).inc()


def job_ended(kind: str, state: str) -> None:
    """A job has ended in this state."""
    JOBS.labels(kind, str(state)).inc()


def forget(model: str) -> None:
    """Drop all series of a model that is no longer declared: names that come and go must not add up."""
    for metric in OF_MODELS:
        with suppress(KeyError):
            metric.remove_by_labels({"model": model})


L = TypeVar("L", bound=tuple[str, ...])


def gauge(name: str, words: str, values: Mapping[L, float], *labels: str) -> Metric:
    """A family of values as they are now, by their labels."""
    family = GaugeMetricFamily(f"medserve_{name}", words, labels=labels)
    for place, value in values.items():
        family.add_metric(place, value)
    return family


class _Whole:
    """The registry's families and those that were read off now."""

    def __init__(self, now: Sequence[Metric]) -> None:
        self._now = now

    def collect(self) -> Iterable[Metric]:
        yield from REGISTRY.collect()
        yield from self._now


def exposition(now: Sequence[Metric], accept: str) -> tuple[bytes, str]:
    """All metrics in the format that an Accept header asks for, and its media type. Blocks a few milliseconds."""
    encode, kind = choose_encoder(accept)
    return encode(_Whole(now)), kind
