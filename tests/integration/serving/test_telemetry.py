"""Requests are traced by OpenTelemetry where a provider is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace

from tests.servers import ServerThread, post_image


class Recorder(trace.TracerProvider, trace.Tracer):
    """A provider and tracer in one that notes the names of spans."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(self, name: str, *_: Any, **__: Any) -> trace.Span:
        self.names.append(name)
        return trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)

    @contextmanager
    def start_as_current_span(self, name: str, *_: Any, **__: Any) -> Iterator[trace.Span]:
        yield self.start_span(name)


def test_spans_go_to_the_process_s_provider(
    start: Callable[..., ServerThread], face_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorder)
    server = start()
    assert post_image(server.url, face_png).status_code == 200
    assert {"POST", "fastapi.endpoint"} <= set(recorder.names)
