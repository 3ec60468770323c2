"""What registries say, in Docker's words and kinds."""

import pytest

from compatd.errors import Forbidden, NotFound, TooManyRequests
from compatd.images.reference import parse_normalized
from compatd.images.registry_faults import RegistryFault, inspect_error, parse_challenges, pull_error

pytestmark = pytest.mark.unit


def test_pulls_word_faults_as_docker_does() -> None:
    reference = parse_normalized("nobody/nothing:1")
    denied = RegistryFault("denied: requested access to the resource is denied", code="DENIED")
    unknown = RegistryFault("manifest unknown: manifest unknown", code="MANIFEST_UNKNOWN")
    for fault, text in (
        (
            denied,
            "pull access denied for nobody/nothing, repository does not exist or may require 'docker login': "
            "denied: requested access to the resource is denied",
        ),
        (unknown, "manifest for nobody/nothing:1 not found: manifest unknown: manifest unknown"),
        (RegistryFault("manifest unknown", code="MANIFEST_UNKNOWN"), "manifest unknown"),
        (
            RegistryFault("name unknown: x", code="NAME_UNKNOWN"),
            "repository nobody/nothing not found: name unknown: x",
        ),
    ):
        error = pull_error(fault, reference)
        assert (type(error), str(error)) == (NotFound, text)
    assert isinstance(inspect_error(denied), Forbidden)
    assert isinstance(inspect_error(RegistryFault("x", code="TOOMANYREQUESTS")), TooManyRequests)
    assert type(pull_error(RegistryFault("x"), reference)) is RegistryFault


def test_challenges_are_read_as_far_as_they_can_be() -> None:
    found = parse_challenges(['Bearer realm="https://a/\\"b",service=s, Basic realm=x', "Negotiate", "???"])
    assert [(one.scheme, dict(one.parameters)) for one in found] == [
        ("bearer", {"realm": 'https://a/"b', "service": "s"}),
        ("basic", {"realm": "x"}),
        ("negotiate", {}),
    ]
