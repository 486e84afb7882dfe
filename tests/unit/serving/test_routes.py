"""What every request pays for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from fastapi.routing import APIRoute

from serving import routes_health, routes_media, routes_tensors, routes_video


def _calls(node: Any) -> Iterator[Any]:
    for part in node.dependencies:
        yield part.call
        yield from _calls(part)


def test_no_dependency_costs_a_hop_to_a_thread() -> None:
    modules = (routes_media, routes_tensors, routes_video, routes_health)
    routers = [*(module.router for module in modules), routes_tensors.infer_router]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    calls = [call for route in routes for call in (route.endpoint, *_calls(route.dependant))]
    assert len(calls) > len(routes)
    assert not [call for call in calls if not inspect.iscoroutinefunction(call)]
