"""Every option of a create request, as Docker takes it: status and text, warnings, what inspect shows, and what a
started container finds."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests import observations
from tests.api import Api

pytestmark = [pytest.mark.root, pytest.mark.parity]

CASES = observations.load()
TOPICS = list(dict.fromkeys(case["topic"] for case in CASES))
# The machine on which the expectations that are marked so were found: see observations.machine.
RECORDED_ON: list[Any] = ["1", 2, True, "6"]


@pytest.mark.parametrize("topic", TOPICS)
def test_create(api: Api, busybox: str, topic: str) -> None:
    observe = observations.Observer(api)
    comparable = observations.machine(api) == RECORDED_ON
    assert list(_differences(observe, topic, machine=comparable)) == []


def _differences(observe: observations.Observer, topic: str, *, machine: bool) -> Iterator[str]:
    for case in CASES:
        if case["topic"] != topic or (case.get("machine") and not machine):
            continue
        seen, expected = observe(case), case["expected"]
        for key in {**expected, **seen}:
            if seen.get(key) != expected.get(key):
                yield f"{case['name']}: {key} is {seen.get(key)}, expected {expected.get(key)}"
