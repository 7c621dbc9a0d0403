"""Requests that schemathesis makes up from the server's own description: no 5xx, and nothing that is not described."""

import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # not later: beside a server thread Python 3.11.7 may fail to compile it
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ROUTES = ["/healthz", "/readyz", "/metrics", "/v1/model", "/v1/filters.png", "/v1/predict"]


def ask(server, route, examples):
    """Answers to ``examples`` requests to a route: their statuses."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json").include(path=route)
    (operation,) = [found.ok() for found in schema.get_all_operations()]
    statuses: list[int] = []

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None, derandomize=True)
    @given(case=operation.as_strategy())
    def one(case):
        response = case.call(timeout=300)  # a busy machine takes longer than the default of 10 s
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    one()
    return statuses


@pytest.mark.parametrize("route", ROUTES)
def test_made_up_requests(server, route):
    statuses = ask(server, route, 40 if route == "/v1/predict" else 3)
    assert statuses and max(statuses) < 500


@pytest.mark.slow
def test_many_made_up_requests(server, png):
    statuses = ask(server, "/v1/predict", 1500)
    assert max(statuses) < 500 and 422 in statuses
    assert server.post(png).status == 200


def test_the_description_has_the_keys_of_a_server(server):
    """A generated client sends the key in either of the two headers; probes need none."""
    description = server.description()
    schemes = description["components"]["securitySchemes"]
    kinds = {name: (one["type"], one.get("scheme"), one.get("name")) for name, one in schemes.items()}
    assert sorted(kinds.values()) == [("apiKey", None, "X-API-Key"), ("http", "bearer", None)]
    for path, operations in description["paths"].items():
        for operation in operations.values():
            accepted = [set(one) for one in operation.get("security", ())]
            assert accepted == ([{name} for name in kinds] if path.startswith("/v1/") or path == "/metrics" else [])
