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


def test_a_single_quick_sample_does_not_say_whose_it_is(api: Api, busybox: str) -> None:
    api.post("/containers/create", {"Image": busybox, "Cmd": ["sleep", "1000"]}, name="sampled").ok()
    api.post("/containers/sampled/start").ok()
    sample = api.get("/containers/sampled/stats", **{"stream": "0", "one-shot": "1"}).ok()
    assert not {"id", "name"} & set(sample)
    assert sample["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert api.get("/containers/sampled/stats", stream="0").ok()["name"] == "/sampled"


def test_runtimes_that_can_be_asked_for(api: Api) -> None:
    assert {"runc", "io.containerd.runc.v2"} <= set(api.get("/info").ok()["Runtimes"])


def test_lists_have_no_filter_for_labels_to_leave_out(api: Api) -> None:
    reply = api.get("/containers/json", filters={"label!": ["x"]})
    assert (reply.status, reply.json()["message"]) == (400, "invalid filter 'label!'")
