"""The content store: only whole and right blobs are visible, whatever happens on the way."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compatd.errors import Conflict, InvalidParameter, NotFound, SystemFailure
from compatd.images.content import ContentStore, DiffId, Digest, chain_id, digest_of, parse_digest

pytestmark = pytest.mark.unit

DATA = b"some blob"
DIGEST = digest_of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_blob_is_visible_once_committed(store: ContentStore, tmp_path: Path) -> None:
    with store.writer("ref", DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:4])
        ingest.write(memoryview(DATA)[4:])
        assert not store.has(DIGEST)
        assert ingest.commit() == DIGEST
    assert store.read(DIGEST, 100) == DATA
    assert [info.digest for info in store.walk()] == [DIGEST]
    assert store.info(DIGEST).size_bytes == len(DATA)
    assert files(tmp_path) == [f"content/sha256/{DIGEST[7:]}"]
    assert store.delete(DIGEST)
    assert not store.delete(DIGEST)


def test_what_is_missing_is_not_found(store: ContentStore) -> None:
    for ask in (store.open, store.info):
        with pytest.raises(NotFound):
            ask(DIGEST)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "../../etc/passwd", "sha256:../../x", "sha256:" + "A" * 64, "sha256:" + "0" * 63 + "\n"]
)
def test_what_is_no_digest_becomes_no_path(store: ContentStore, text: str) -> None:
    uses: list[Callable[[Digest], object]] = [store.path, store.has, store.open, store.delete]
    uses.append(lambda digest: store.writer("x", digest))
    for use in uses:
        with pytest.raises(InvalidParameter):
            use(Digest(text))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80) | st.text("sha256:./0af", max_size=75))
def test_digests_are_strict(text: str) -> None:
    try:
        assert parse_digest(text) == text
    except InvalidParameter:
        return
    assert len(text) == 71
    assert set(text[7:]) <= set("0123456789abcdef")


@pytest.mark.parametrize("ref", ["../../escape", "/etc/x", "a/b", "", "\udc80", "x" * 5000])
def test_a_ref_is_a_name_not_a_path(store: ContentStore, tmp_path: Path, ref: str) -> None:
    with store.writer(ref) as ingest:
        ingest.write(b"x")
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "ingest"]


def test_wrong_bytes_are_discarded(store: ContentStore, tmp_path: Path) -> None:
    with store.writer("ref", DIGEST) as ingest:
        ingest.write(b"other")
        with pytest.raises(SystemFailure, match="unexpected commit digest"):
            ingest.commit()
    with store.writer("ref", DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:-1])
        with pytest.raises(SystemFailure, match="unexpected commit size"):
            ingest.commit()
    with store.writer("ref", DIGEST, len(DATA)) as ingest:
        with pytest.raises(SystemFailure, match="unexpected commit size"):
            ingest.write(DATA + b"x")
        ingest.abort()
    assert files(tmp_path) == []


def test_an_ingest_is_resumed_where_it_stopped(store: ContentStore) -> None:
    with store.writer("ref", DIGEST) as ingest:
        ingest.write(DATA[:5])
    with store.writer("ref", DIGEST) as ingest:
        assert ingest.offset == 5
        assert ingest.digest == digest_of(DATA[:5])
        ingest.write(DATA[5:])
        assert ingest.commit() == DIGEST


def test_an_ingest_without_bytes_is_nothing(store: ContentStore, tmp_path: Path) -> None:
    store.writer("ref").close()
    assert files(tmp_path) == []


def test_too_long_a_rest_of_an_ingest_is_no_start(store: ContentStore) -> None:
    with store.writer("ref") as ingest:
        ingest.write(DATA + b"too long")
    with store.writer("ref", DIGEST, len(DATA)) as ingest:
        assert ingest.offset == 0
        ingest.write(DATA)
        ingest.commit()


def test_one_writer_at_a_time(store: ContentStore) -> None:
    with store.writer("ref"), pytest.raises(Conflict):
        store.writer("ref")
    store.writer("ref").close()


def test_sweep_takes_what_nobody_holds_and_is_old(store: ContentStore, tmp_path: Path) -> None:
    with store.writer("held") as held:
        held.write(b"x")
        with store.writer("left") as left:
            left.write(b"x")
        assert store.sweep(idle_s=3600) == 0
        assert store.sweep(idle_s=-1) == 1
        assert len(files(tmp_path)) == 1
        held.commit()
    assert store.sweep(idle_s=-1) == 0


def test_reading_is_bounded(store: ContentStore) -> None:
    digest = store.write(DATA)
    assert store.read(digest, len(DATA)) == DATA
    with pytest.raises(SystemFailure, match=f"larger than {len(DATA) - 1} bytes"):
        store.read(digest, len(DATA) - 1)


def test_a_committed_blob_cannot_be_written(store: ContentStore) -> None:
    digest = store.write(DATA)
    assert store.write(DATA) == digest
    assert os.stat(store.path(digest)).st_mode & 0o777 == 0o400


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 6))
def test_pieces_and_interruptions_do_not_matter(store: ContentStore, pieces: list[bytes], stop: int) -> None:
    with store.writer("pieces") as ingest:
        for piece in pieces[:stop]:
            ingest.write(piece)
    with store.writer("pieces") as ingest:
        for piece in pieces[stop:]:
            ingest.write(piece)
        digest = ingest.commit()
    assert store.read(digest, 1000) == b"".join(pieces)


def test_chain_ids_are_those_of_the_image_specification() -> None:
    first, second = DiffId("sha256:" + "1" * 64), DiffId("sha256:" + "2" * 64)
    assert str(chain_id([first])) == first
    assert str(chain_id([first, second])) == digest_of(f"{first} {second}".encode())
