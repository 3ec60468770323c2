import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatd.builder.cachekey import directory_digest, file_digest, source_digest, sources_digest, step_key
from compatd.builder.image import RunConfig
from compatd.builder.trees import Inode, Kind

pytestmark = pytest.mark.unit


def test_digests_are_those_of_the_classic_builder() -> None:
    # as Docker 28.5.2 stored them for two files of one byte
    first = file_digest((b"a",), Inode(kind=Kind.FILE, mode=0o644, size=1), [b"1"])
    second = file_digest((b"b",), Inode(kind=Kind.FILE, mode=0o644, size=1), [b"2"])
    assert first == "4ce57d7c4e3f323fd1d60451b5629b642ed2f4908ae29d2a6b3cadc7ceb61e58"
    both = sources_digest([source_digest(first), source_digest(second)])
    assert both == "multi:a20dbc7c39c96ab5923b704cd499e4d2eb45421f6ff9ca59bc061b3c22a3995b"
    assert sources_digest([source_digest(first)]) == f"file:{first}"
    assert directory_digest([first, second]) == directory_digest([second, first])


def test_metadata_counts_and_times_do_not() -> None:
    def digest(path: bytes = b"f", content: bytes = b"x", **fields: object) -> str:
        inode = Inode(kind=Kind.FILE, size=len(content))
        for name, value in fields.items():
            setattr(inode, name, value)
        return file_digest((path,), inode, [content])

    plain = digest()
    assert plain == digest(mtime_ns=5)
    changed = [
        digest(b"g"),
        digest(content=b"y"),
        digest(mode=0o755),
        digest(uid=1),
        digest(gid=1),
        digest(kind=Kind.CHAR),
        digest(device=os.makedev(1, 2)),
        digest(xattrs={b"user.a": b"1"}),
        digest(kind=Kind.SYMLINK, target=b"t"),
    ]
    assert len({plain, *changed}) == len(changed) + 1


commands = st.lists(st.text(max_size=4), max_size=4)


@given(commands, commands)
def test_a_key_tells_commands_apart(first: list[str], second: list[str]) -> None:
    config = RunConfig()
    assert (step_key("p", config, first) == step_key("p", config, second)) is (first == second)


def test_a_key_tells_parents_and_configurations_apart() -> None:
    keys = {
        step_key("p", RunConfig(), ("x",)),
        step_key("q", RunConfig(), ("x",)),
        step_key("p", RunConfig(user="me"), ("x",)),
        step_key("p", RunConfig(labels={}), ("x",)),
    }
    assert len(keys) == 4
    assert step_key("p", RunConfig(labels={"a": "1", "b": "2"}), ("x",)) == step_key(
        "p", RunConfig(labels={"b": "2", "a": "1"}), ("x",)
    )
