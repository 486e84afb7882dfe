"""The OpenAPI document is true: generated requests, good and bad, get what it promises."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.servers import ServerThread

EXAMPLES = 12


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_answers_as_documented(server: ServerThread, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    faults = [fault for operation in operations for fault in faults_of(operation, mode)]
    assert not faults, "\n".join(faults)


def faults_of(operation: Any, mode: GenerationMode) -> list[str]:
    """What generated requests of one route find."""
    # a document cannot say which bytes are a picture: that a random body is refused is no fault
    upload = operation.method.upper() == "POST" and operation.path.startswith("/v1/")
    excluded = [positive_data_acceptance] if upload else []

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        case.call_and_validate(timeout=60, excluded_checks=excluded)

    try:
        check()
    except Unsatisfiable:
        # a route without parameters has no wrong request
        return []
    except FailureGroup as failures:
        return [f"{operation.label}: {failure}" for failure in failures.exceptions]
    return []


def test_every_route_is_documented_with_its_problems(server: ServerThread) -> None:
    document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    operations = [
        (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if not path.startswith(("/v2", "/healthz"))
    ]
    assert len(operations) >= 9
    for path, operation in operations:
        assert operation["summary"], path
        problems = [status for status in operation["responses"] if status[0] in "45"]
        assert problems, path
        for status in problems:
            content = operation["responses"][status]["content"]
            assert set(content) == {"application/problem+json"}, (path, status)
    bodies = document["paths"]["/v1/images"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "image/jpeg", "application/octet-stream"} <= set(bodies)
    names = document["components"]["schemas"]
    assert {"ImageResult", "VideoResult", "VideoStart", "VideoFrame", "VideoEnd", "Problem", "Job"} <= set(
        names
    )
