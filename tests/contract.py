"""Replies held against the contract, api/engine.yaml.

A test that talks to the API hands each exchange to ``Contract.check``; what it returns names the operation, the
parameters that were used and the status: the raw material of the compatibility matrix. ``Contract.seen`` keeps them.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

import yaml
from jsonschema import Draft202012Validator

from compatd.routes.dispatch import Router

CONTRACT = Path(__file__).parents[1] / "api" / "engine.yaml"


class Exchange(NamedTuple):
    """One request as the matrix counts it. ``operation`` is empty for a path that the API does not have."""

    operation: str
    parameters: frozenset[str]
    version: str  # "1.51", or empty for a bare path
    status: int


@cache
def document() -> dict[str, Any]:
    """The contract."""
    return cast(dict[str, Any], yaml.safe_load(CONTRACT.read_text()))


@cache
def validator(reference: str) -> Draft202012Validator:
    """For a schema of the contract, by its JSON document."""
    schema = json.loads(reference)
    return Draft202012Validator({"components": document()["components"], **schema})


class Contract:
    """Checks, and remembers what it has seen."""

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self._router = Router()

    def check(self, method: str, target: str, status: int, content_type: str, body: bytes) -> Exchange:
        """``AssertionError`` when a reply to ``method target`` is none that the contract knows.

        Replies of older API versions differ by design and are not validated, only counted.
        """
        parts = urlsplit(target)
        path, version = parts.path, ""
        if path.startswith("/v1."):
            version, _, rest = path[2:].partition("/")
            path = "/" + rest
        found = self._router.find(method, path)
        exchange = Exchange(
            operation=found[0].id if found else "",
            parameters=frozenset(name for name, _ in parse_qsl(parts.query, keep_blank_values=True)),
            version=version,
            status=status,
        )
        self.seen.append(exchange)
        if status >= 400:
            if method != "HEAD" and "json" in content_type:
                self._validate({"$ref": "#/components/schemas/Error"}, json.loads(body), exchange)
            return exchange
        if found is None or version not in ("", "1.51"):
            return exchange
        operation = document()["paths"][found[0].path][method.lower()]
        unknown = exchange.parameters - {parameter["name"] for parameter in operation.get("parameters", [])}
        assert not unknown, f"{exchange.operation} has no parameter {unknown}"
        reply = operation["responses"].get(str(status))
        assert reply is not None, f"{exchange.operation} has no reply {status}"
        content = reply.get("content")
        media = content_type.partition(";")[0]
        if content is None:
            assert not body, f"{exchange.operation} answers {status} without a body"
            return exchange
        if media == "" and not body:
            return exchange
        assert media in content, f"{exchange.operation} does not answer with {media}"
        schema = content[media].get("schema")
        if schema is not None and method != "HEAD":
            lines = body.splitlines() if content[media].get("x-compatd-stream") else [body]
            for line in lines:
                self._validate(schema, json.loads(line), exchange)
        return exchange

    def _validate(self, schema: dict[str, Any], value: object, exchange: Exchange) -> None:
        problems = [
            f"{'/'.join(map(str, problem.absolute_path))}: {problem.message[:300]}"
            for problem in validator(json.dumps(schema)).iter_errors(value)
        ]
        assert not problems, f"{exchange.operation} {exchange.status}: " + "; ".join(problems[:5])
