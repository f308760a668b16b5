"""A real OTLP/HTTP receiver on loopback: it keeps what it is sent and decodes the spans as any collector would."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Received:
    """A span as it travelled: ids in hexadecimal, attributes as plain values."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    failed: bool
    attributes: dict[str, Any]
    events: int


@dataclass
class Collector:
    """What has been received so far: bodies by path as they came, and the spans in those of traces."""

    url: str
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)

    @property
    def spans(self) -> list[Received]:
        found: list[Received] = []
        for path, body in list(self.bodies):
            if path == "/v1/traces":
                found += self._spans(ExportTraceServiceRequest.FromString(body))
        return found

    def named(self, name: str) -> Received:
        """The one span of that name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def _spans(self, request: ExportTraceServiceRequest) -> Iterator[Received]:
        for of_resource in request.resource_spans:
            self.resource = _plain(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    yield Received(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.kind,
                        span.status.code == 2,
                        _plain(span.attributes),
                        len(span.events),
                    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A receiver that listens for as long as the context lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.collector = Collector(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.collector  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.collector.bodies.append((self.path, body))  # type: ignore[attr-defined]
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named so by http.server
        """Say nothing."""


def _plain(attributes: Any) -> dict[str, Any]:
    return {entry.key: _value(entry.value) for entry in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
