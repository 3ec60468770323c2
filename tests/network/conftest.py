from collections.abc import Iterator

import pytest

from tests.network.namespaces import Host


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine of its own with a default network."""
    machine = Host()
    yield machine
    machine.close()
