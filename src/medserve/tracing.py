"""Traces by OpenTelemetry, when they are asked for: which part of a request took how long, never what was said in it.

The SDK is the extra `otel`, imported when tracing starts. Errors are told by their kind; their words stay out, because
they may quote what a caller sent. Of the W3C trace context only `traceparent` is read, which holds numbers;
`tracestate` and `baggage` are free text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from medserve import __version__
from medserve.errors import InvalidRequest, MedserveError
from medserve.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OpenSpan
    from opentelemetry.trace import Tracer

PATH = "/v1/traces"
STOP_SECONDS = 5.0
"""How long the last spans may take to be sent when the service ends."""

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | bool | int | float | Sequence[str] | None]


class Span:
    """A piece of work being timed; without a trace it does nothing."""

    def __init__(self, span: "OpenSpan | None" = None) -> None:
        self._span = span

    @property
    def trace(self) -> str:
        """The trace that it belongs to, 32 hexadecimal digits, "" without one."""
        return f"{self._span.get_span_context().trace_id:032x}" if self._span is not None else ""

    def set(self, attributes: Attributes) -> None:
        """Add attributes; None is left out."""
        if self._span is not None:
            self._span.set_attributes(_known(attributes))

    def name(self, name: str) -> None:
        """Call it otherwise, once more is known."""
        if self._span is not None:
            self._span.update_name(name)

    def failed(self, kind: str) -> None:
        """It ended in an error of this kind."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", kind)
            self._span.set_status(StatusCode.ERROR)

    def current(self) -> AbstractContextManager[object]:
        """A context in which what begins is part of it."""
        if self._span is None:
            return nullcontext()
        from opentelemetry.trace import use_span

        return use_span(self._span, record_exception=False, set_status_on_exception=False)


SILENT = Span()


class _Tracing:
    """The running exporter and what makes spans for it."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        ours = {SERVICE_VERSION: __version__}
        asked = Resource.create(ours)  # with what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say
        if str(asked.attributes[SERVICE_NAME]).startswith("unknown_service"):
            asked = asked.merge(Resource({SERVICE_NAME: "medserve"}))
        self._exporter = OTLPSpanExporter(endpoint=_traces_at(endpoint))
        # Not made the process's own: libraries that find one there tell it paths, queries and errors' words.
        self._provider = TracerProvider(resource=asked, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.tracer: Tracer = self._provider.get_tracer("medserve", __version__)

    def stop(self) -> None:
        """Send what is left, for a few seconds at most."""
        last = Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(STOP_SECONDS)
        if last.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its waiting for a collector that does not answer
            last.join(1.0)


_tracing: _Tracing | None = None


def check(settings: Settings) -> None:
    """Raise InvalidRequest when traces are asked for and cannot be made."""
    if settings.otlp_endpoint and not (
        _found("opentelemetry.sdk") and _found("opentelemetry.exporter.otlp.proto.http")
    ):
        raise InvalidRequest(
            "otlp_endpoint is set and the extra that sends traces is not installed; "
            "pip install 'medserve[otel]', or leave otlp_endpoint empty",
            param="otlp_endpoint",
        )


def _found(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def start(settings: Settings) -> None:
    """From now on send spans to `settings.otlp_endpoint`, if there is one. Blocking."""
    global _tracing
    check(settings)
    if settings.otlp_endpoint and _tracing is None:
        _tracing = _Tracing(settings.otlp_endpoint)


def stop() -> None:
    """Send what is left and make no more spans. Blocking, for STOP_SECONDS at most."""
    global _tracing
    running, _tracing = _tracing, None
    if running is not None:
        running.stop()


@contextmanager
def span(
    name: str,
    attributes: Attributes = MappingProxyType({}),
    *,
    kind: Kind = "internal",
    traceparent: str = "",
    current: bool = True,
) -> Iterator[Span]:
    """Time the work of this context as a part of the span that is current, or of a caller's `traceparent`.

    An asynchronous generator, which may be ended in another task than it began in, takes `current=False` and
    `Span.current` around each step.
    """
    if _tracing is None:
        yield SILENT
        return
    begun = _begun(_tracing.tracer, name, kind, traceparent, attributes)
    made = Span(begun)
    try:
        with made.current() if current else nullcontext():
            yield made
    except Exception as error:
        made.failed(kind_of(error))
        raise
    finally:
        begun.end()


def headers() -> dict[str, str]:
    """What a request to another server carries, so that its work is a part of the current span's trace."""
    if _tracing is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carried)
    return {"traceparent": carried["traceparent"]} if "traceparent" in carried else {}


def kind_of(error: BaseException) -> str:
    """What an error is called where its words may not go: its code, or the name of its type."""
    return error.code if isinstance(error, MedserveError) else type(error).__name__


def _begun(tracer: "Tracer", name: str, kind: Kind, traceparent: str, attributes: Attributes) -> "OpenSpan":
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent}) if traceparent else None
    return tracer.start_span(name, context, SpanKind[kind.upper()], _known(attributes))


def _known(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _traces_at(endpoint: str) -> str:
    """The address that takes traces, as OpenTelemetry makes it from a collector's."""
    base = endpoint.rstrip("/")
    return base if base.endswith(PATH) else base + PATH
