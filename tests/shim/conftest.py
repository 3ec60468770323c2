"""A spawner and a place for containers."""

from collections.abc import AsyncIterator, Iterator

import pytest

from compatd.runtime.client import Spawner
from tests.conftest import have
from tests.shim.containers import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = have(Nursery)
    yield made
    made.close()


@pytest.fixture
async def spawner() -> AsyncIterator[Spawner]:
    made = Spawner()
    await made.start()
    yield made
    await made.close()
