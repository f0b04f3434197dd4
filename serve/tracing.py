"""Traces of requests: where their time went, in OpenTelemetry's form.

    POST /v1/detect            FastAPI's own span; it goes on with the caller's trace where there is a `traceparent`
      decode                   of the picture
      queue                    waiting for the model
      detect                   the model at work (encode, answer, ...), linked to the batch that it was part of
      search                   in an archive
    batch                      a trace of its own: one run of a model, linked to the spans of all requests in it

No attribute holds anything of what was asked or shown, and errors are told by their type.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, StatusCode, TracerProvider
from starlette.types import Scope

from foveal import __version__
from foveal.errors import BadInput, ConfigError
from serve.logs import PROBES

SECONDS = 5.0  # for one delivery to a collector
_NO_QUERY = "REDACTED"  # as FastAPI writes what it knows to be secret


@dataclass(frozen=True, slots=True)
class Wait:
    """A request that waits for a model."""

    request: SpanContext
    context: Context
    span: Span

    def end(self) -> None:
        """It waits no longer: the model begins, or nobody wants the answer."""
        if self.span.is_recording():
            self.span.end()


class Traces:
    """Makes the spans of one server; without a provider it does nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = None if provider is None else provider.get_tracer("foveal", __version__)

    @contextmanager
    def span(self, name: str) -> Generator[None]:
        """A part of the request at hand."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield
            except Exception as error:
                _failed(span, error)
                raise

    def wait(self, model: str) -> Wait | None:
        """The request at hand waits for a model, from now on until `Wait.end`; None where nobody records it."""
        request = trace.get_current_span()
        if self._tracer is None or not request.is_recording():
            return None
        span = self._tracer.start_span("queue", attributes={"foveal.model": model})
        return Wait(request.get_span_context(), context.get_current(), span)

    @contextmanager
    def batch(self, model: str, stage: str, waited: Sequence[Wait | None]) -> Generator[None]:
        """A model works on requests together: a span of the batch, and one in each request's trace."""
        traced = [wait for wait in waited if wait is not None]
        if self._tracer is None or not traced:
            yield
            return
        facts = {"foveal.model": model, "foveal.stage": stage, "foveal.batch.size": len(waited)}
        links = [Link(wait.request) for wait in traced]
        batch = self._tracer.start_span("batch", Context(), attributes=facts, links=links)
        beside = [Link(batch.get_span_context())]
        start = self._tracer.start_span
        spans = [batch, *(start(stage, wait.context, attributes=facts, links=beside) for wait in traced)]
        try:
            yield
        except Exception as error:
            for span in spans:
                _failed(span, error)
            raise
        finally:
            for span in spans:
                span.end()


def telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """What FastAPI itself is to record: a span for each request but the probes, and nothing that holds contents."""
    probes: Callable[[Scope], bool] = lambda scope: scope.get("path") in PROBES  # noqa: E731
    return {
        "tracer_provider": provider,
        "tracing": provider is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": probes,
    }


def current(scope: Scope) -> str | None:
    """The id of the request's trace, None where it has none; what stands after the path's ? is taken out of it."""
    span = trace.get_current_span()
    if not span.is_recording():
        return None
    if scope.get("query_string"):
        span.set_attribute("url.query", _NO_QUERY)
    return trace.format_trace_id(span.get_span_context().trace_id)


@contextmanager
def exporting(url: str) -> Generator[TracerProvider]:
    """A provider that sends its spans to a collector by OTLP over HTTP; what it still holds is sent at the end.

    Args:
        url: e.g. `http://127.0.0.1:4318`; without a path /v1/traces is meant.

    Raises:
        BadInput: it is not an address.
        ConfigError: the extra `tracing` is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(
            "traces cannot be sent there", expected="the address of a collector, e.g. http://127.0.0.1:4318",
            received=url[:200], remedy="Change --otlp.",
        )  # fmt: skip
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as Provider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("traces need more packages", remedy="pip install 'foveal[tracing]'") from None
    endpoint = parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else url
    resource = Resource.create({"service.name": "foveal", "service.version": __version__})
    provider = Provider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=SECONDS)))
    try:
        yield provider
    finally:
        provider.shutdown()


def _failed(span: Span, error: Exception) -> None:
    span.set_attribute("error.type", f"{type(error).__module__}.{type(error).__qualname__}")
    span.set_status(StatusCode.ERROR)
