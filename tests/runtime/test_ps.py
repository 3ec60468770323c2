"""ps(1) on this test's own processes: what the table of Docker's replies (tests/client/test_top.py) does not hold."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import SystemFailure
from compatd.runtime import ps, top

pytestmark = pytest.mark.unit


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def test_columns_keep_their_widths(child: int) -> None:
    head, row = ps.listing(["-o", "comm:2,pid,user=ALONGHEADER,args", f"-q{child}"]).splitlines()
    assert head.startswith("COMMAND ")
    assert "PID ALONGHEADER COMMAND" in " ".join(head.split())
    assert row.startswith("sl ")
    assert row.endswith(" sleep 1000")


def test_sorting_goes_by_numbers_and_both_ways(child: int) -> None:
    me = os.getpid()
    up = ps.listing(["-p", f"{me},{child}", "-o", "pid=", "--sort", "pid"]).split()
    down = ps.listing(["-p", f"{me},{child}", "-o", "pid=", "--sort=-pid"]).split()
    assert up == sorted([str(me), str(child)], key=int) == down[::-1]


def test_a_forest_hangs_children_below_their_parents(child: int) -> None:
    lines = ps.listing(["-p", f"{os.getpid()},{child}", "-o", "pid=,args=", "--forest"]).splitlines()
    assert [line.split()[0] for line in lines] == [str(os.getpid()), str(child)]
    assert " \\_ sleep 1000" in lines[1]


def test_threads_have_rows_of_their_own() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        rows = ps.listing(["-L", "-o", "pid=,lwp=", f"-q{os.getpid()}"]).splitlines()
        assert [str(os.getpid()), str(thread.native_id)] in [row.split() for row in rows]
        both = top.list_processes([os.getpid()], "m")[1]
        assert both[0][0] == str(os.getpid())
        assert {row[0] for row in both[1:]} == {"-"}
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-o pid,nothing", 'ps: error: unknown user-defined format specifier "nothing"'),
        ("-o comm", "Couldn't find PID field in ps output"),
        ("-ef --no-headers", "Couldn't find PID field in ps output"),
        (
            "--headers --rows 2 -N -p 999999999",
            "Unexpected pid 'PID': strconv.Atoi: parsing \"PID\": invalid syntax",
        ),
        ("-p 999999999", "ps: exit status 1"),
        ("-", "ps: error: garbage option"),
    ],
)
def test_refusals_are_those_of_ps_and_of_docker(words: str, text: str) -> None:
    with pytest.raises(SystemFailure) as refused:
        top.list_processes([os.getpid()], words)
    assert str(refused.value) == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("-+efFlyjLTmZaxuosvXckOpq1,:=%pid ", min_size=1, max_size=8), min_size=1, max_size=3))
def test_any_words_are_a_listing_or_a_refusal(words: list[str]) -> None:
    with contextlib.suppress(SystemFailure):
        top.list_processes([os.getpid()], " ".join(words))
