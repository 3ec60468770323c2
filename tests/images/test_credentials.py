"""Whose credentials a client's configuration holds."""

import pytest

from compatd.errors import InvalidParameter
from compatd.images.credentials import registry_domain

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("r.example:5000", "r.example:5000"),
        ("https://r.example/v2/", "r.example"),
    ],
)
def test_domains(address: str, domain: str) -> None:
    assert registry_domain(address) == domain


def test_what_is_no_domain() -> None:
    with pytest.raises(InvalidParameter, match="invalid registry address"):
        registry_domain("a b")
