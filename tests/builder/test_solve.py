import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from compatd.builder.ports import CommandFailed, Fetched, Platform, Record, RunResult, RunStep, Stream
from compatd.builder.solve import BuildRequest, build
from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from tests.fakes.builder import HOST, Engine, make_tar, member

pytestmark = pytest.mark.unit

CASES = sorted(path.parent for path in (Path(__file__).parents[1] / "golden" / "dockerfiles").glob("*/output.txt"))
CONTEXT = {"a": "1", "b": "2", "package.json": "{}", "package-lock.json": "{}", "server.js": "//"}
BUILDKIT = (
    "requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ "
    "to learn how to build images with BuildKit enabled"
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


def say(step: RunStep, output: Callable[[int, bytes], None]) -> RunResult:
    """What every RUN does here: it says what it was started as."""
    output(1, f"{' '.join(step.args)} in {step.working_dir or '/'}\n".encode())
    return RunResult(exit_code=0)


def document(engine: Engine, image_id: str) -> dict[str, object]:
    """The parts of an image's document that do not change from build to build."""
    found = json.loads(engine.images.documents[image_id])
    for name in ("config", "container_config"):
        found[name].pop("Image")
    return {
        "author": found.get("author"),
        "config": found["config"],
        "history": [
            [step["created_by"], "empty" if step.get("empty_layer") else "layer"] for step in found["history"][:]
        ],
        "layers": len(found["rootfs"].get("diff_ids", [])),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_golden(case: Path, engine: Engine) -> None:
    engine.runner.behave = say
    text = (case / "Dockerfile").read_bytes()
    image_id = await engine.build(text, CONTEXT)
    assert "\n".join(engine.lines()) + "\n" == (case / "output.txt").read_text()
    assert document(engine, image_id) == json.loads((case / "image.json").read_text())

    first = engine.aux()
    again = await engine.build(text, CONTEXT)
    assert again == image_id
    assert engine.aux() == first
    assert " ---> Using cache" in engine.lines() or len(CONTEXT) == 0
    assert not any(line.startswith(" ---> Running in") for line in engine.lines())


async def test_events_are_those_of_the_classic_api(engine: Engine) -> None:
    engine.runner.behave = say
    image_id = await engine.build("FROM base\nRUN x\n", tags=("one:latest", "two:1"))
    short = image_id.removeprefix("sha256:")[:12]
    container = engine.runner.steps[0].container_id[:12]
    base = engine.base.removeprefix("sha256:")[:12]
    texts = [event.text for event in engine.events if isinstance(event, Stream)]
    assert texts == [
        "Step 1/2 : FROM base",
        "\n",
        f" ---> {base}\n",
        "Step 2/2 : RUN x",
        "\n",
        f" ---> Running in {container}\n",
        "/bin/sh -c x in /\n",
        f" ---> Removed intermediate container {container}\n",
        f" ---> {short}\n",
        f"Successfully built {short}\n",
        "Successfully tagged one:latest\n",
        "Successfully tagged two:1\n",
    ]
    assert engine.aux() == [image_id]
    assert engine.images.names["two:1"] == image_id


async def test_run_gets_what_the_image_and_the_arguments_say(engine: Engine) -> None:
    await engine.build(
        'FROM base\nARG A=1\nARG http_proxy\nENV E=2\nUSER me\nWORKDIR /w\nVOLUME /v\nLABEL l=v\nENTRYPOINT ["e"]\n'
        'RUN ["do","it"]\n',
        build_args={"http_proxy": "proxy", "HTTPS_PROXY": "other", "A": None},
    )
    step = engine.runner.steps[0]
    assert step.args == ("do", "it")
    assert step.env[-4:] == ("E=2", "A=1", "http_proxy=proxy", "HTTPS_PROXY=other")
    assert (step.user, step.working_dir, step.volumes, step.labels) == ("me", "/w", ("/v",), {"l": "v"})
    history = json.loads(engine.images.documents[list(engine.images.documents)[-1]])["history"]
    # A predefined argument counts only where the Dockerfile declares it.
    assert history[-1]["created_by"] == "|2 A=1 http_proxy=proxy do it"


async def test_errors_in_red_and_bad_bytes_replaced(engine: Engine) -> None:
    def behave(step: RunStep, output: Callable[[int, bytes], None]) -> RunResult:
        output(1, b"\xc3")
        output(2, b"bad\n")
        output(1, b"\xa9 \xff\n")
        return RunResult(exit_code=0)

    engine.runner.behave = behave
    await engine.build("FROM base\nRUN x\n")
    texts = [event.text for event in engine.events if isinstance(event, Stream)]
    assert texts[6:8] == ["\x1b[91mbad\n\x1b[0m", "é \ufffd\n"]


async def test_a_failing_command(engine: Engine) -> None:
    engine.runner.behave = lambda step, output: RunResult(exit_code=3)
    with pytest.raises(CommandFailed) as caught:
        await engine.build("FROM base\nRUN exit 3\nRUN never\n")
    assert str(caught.value) == "The command '/bin/sh -c exit 3' returned a non-zero code: 3"
    assert caught.value.code == 3
    assert len(engine.runner.steps) == 1
    assert engine.lines()[-1] == " ---> Running in <id>"  # kept, as dockerd does without --force-rm

    with pytest.raises(CommandFailed):
        await engine.build("FROM base\nRUN exit 3\n", force_remove=True)
    assert engine.lines()[-1] == " ---> Removed intermediate container <id>"


async def test_quiet_shows_the_id_or_everything(engine: Engine) -> None:
    image_id = await engine.build("FROM base\nRUN x\n", quiet=True, pull=True)
    assert engine.events == [Stream(f"{image_id}\n")]
    engine.runner.behave = lambda step, output: RunResult(exit_code=1)
    with pytest.raises(CommandFailed):
        await engine.build("FROM base\nRUN y\n", quiet=True)
    assert engine.lines()[0] == "Step 1/2 : FROM base"


async def test_without_remove_containers_are_not_spoken_of(engine: Engine) -> None:
    await engine.build("FROM base\nRUN x\nCMD y\n", remove=False)
    assert not any("Removed" in line for line in engine.lines())


@pytest.mark.parametrize(
    ("dockerfile", "error"),
    [
        ("RUN --mount=type=cache,target=/x ls", f"the --mount option {BUILDKIT}"),
        ("RUN --network=none ls", f"the --network option {BUILDKIT}"),
        ("COPY --chmod=644 a b", f"the --chmod option {BUILDKIT}"),
        ("ADD --chmod=644 a b", f"the --chmod option {BUILDKIT}"),
        ("COPY <<EOF /x\nhi\nEOF", "COPY failed: no source files were specified"),
        (
            "COPY nope /x",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist",
        ),
        ("COPY z* /x", "COPY failed: no source files were specified"),
        ("COPY [[] /x", "COPY failed: no source files were specified"),
        ("COPY ../a /x", "COPY failed: forbidden path outside the build context: ../a ()"),
        ("COPY http://x/y b", "COPY failed: source can't be a URL for COPY"),
        (
            "COPY a b /x",
            "When using COPY with more than one source file, the destination must be a directory and end with a /",
        ),
        ("COPY --from=5 a b", "invalid from flag value 5: index out of bounds"),
        ("COPY --from=-1 a b", "invalid from flag value -1: index out of bounds"),
        ("COPY --from=0 a b", "invalid from flag value 0: refers to current build stage"),
        (
            "COPY --from=nope a b",
            "invalid from flag value nope: pull access denied for nope, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied",
        ),
        (
            "COPY --chown=nouser a /x",
            "unable to convert uid/gid chown string to host mapping: can't find uid for user nouser: "
            "no such user: nouser",
        ),
        (
            "COPY --chown=0:nogroup a /x",
            "unable to convert uid/gid chown string to host mapping: can't find gid for group nogroup: "
            "no such group: nogroup",
        ),
        (
            "COPY --chown=a:b:c a /x",
            "unable to convert uid/gid chown string to host mapping: invalid chown string format: a:b:c",
        ),
        ("COPY a /file/x", "failed to copy files: lstat /file/x: not a directory"),
        ("COPY a /file/", "failed to copy files: failed to create new directory: mkdir /file: not a directory"),
        ("COPY . /file", "failed to copy files: failed to copy directory: mkdir /file: not a directory"),
        ("WORKDIR /file", "Cannot mkdir: /file is not a directory"),
        ("WORKDIR $nothing", "cannot normalize nothing"),
        ("EXPOSE foo", "Invalid containerPort: foo"),
        ("EXPOSE 80/foo", "Invalid proto: foo"),
        ("STOPSIGNAL FOO", "invalid signal: FOO"),
        ("VOLUME $nothing", "VOLUME specified can not be an empty string"),
        ("ENV a=${b", 'failed to process "${b": unsupported modifier (\ufffd) in substitution'),
        ("WORKDIR ${a:?msg}", 'failed to process "${a:?msg}": a: msg'),
        (
            "FROM nope",
            "pull access denied for nope, repository does not exist or may require 'docker login': "
            "denied: requested access to the resource is denied",
        ),
        ("FROM $nothing", "base name ($nothing) should not be blank"),
        (
            "FROM --platform=a/b/c/d base",
            'failed to parse platform a/b/c/d: "a/b/c/d": cannot parse platform specifier: invalid argument',
        ),
    ],
)
async def test_errors_of_steps(dockerfile: str, error: str, engine: Engine) -> None:
    with pytest.raises(EngineError) as caught:
        await engine.build(f"FROM base\n{dockerfile}\n", {"a": "1", "b": "2"})
    assert str(caught.value) == error
    assert engine.lines()[:2] == ["Step 1/2 : FROM base", " ---> <id>"]


@pytest.mark.parametrize(
    ("context", "options", "kind", "error"),
    [
        (make_tar({"a": "1"}), {}, SystemFailure, "Cannot locate specified Dockerfile: Dockerfile"),
        (b"", {}, SystemFailure, "Cannot locate specified Dockerfile: Dockerfile"),
        (make_tar({"Dockerfile": ""}), {}, InvalidParameter, "the Dockerfile (Dockerfile) cannot be empty"),
        (
            make_tar({"Dockerfile": "#\n"}),
            {},
            InvalidParameter,
            "failed to parse Dockerfile: file with no instructions",
        ),
        (
            make_tar({"x/D": "ENV a\n"}),
            {"dockerfile": "x/D"},
            InvalidParameter,
            "failed to parse x/D: ENV must have two arguments",
        ),
        (make_tar({"Dockerfile": "FROM base"}), {"dockerfile": "nope"}, SystemFailure,
         "Cannot locate specified Dockerfile: nope"),
        (make_tar({"Dockerfile": "FROM base"}), {"dockerfile": "../x"}, SystemFailure,
         "forbidden path outside the build context: ../x ()"),
        (make_tar({"Dockerfile": None}), {}, SystemFailure,
         "unexpected error reading Dockerfile: read Dockerfile: is a directory"),
        (make_tar({"Dockerfile": member(b"6")}), {}, SystemFailure,
         "unexpected error reading Dockerfile: read Dockerfile: is not a regular file"),
        (make_tar({"Dockerfile": member(b"2", linkname="/etc/passwd")}), {}, SystemFailure,
         "Cannot locate specified Dockerfile: Dockerfile"),
        (make_tar({"Dockerfile": "FOO\n"}), {}, InvalidParameter,
         "dockerfile parse error on line 1: unknown instruction: FOO (did you mean FROM?)"),
        (make_tar({"Dockerfile": "FROM base"}), {"target": "nope"}, InvalidParameter,
         'target stage "nope" could not be found'),
        (make_tar({"../x": "1"}), {}, SystemFailure, 'invalid entry name "../x"'),
        (make_tar({"h": member(b"1", linkname="../etc/passwd")}), {}, SystemFailure,
         'invalid hardlink target "../etc/passwd"'),
        (make_tar({"h": member(b"1", linkname="/etc/passwd")}), {}, SystemFailure,
         "linkat etc/passwd h: no such file or directory"),
        (b"xxxxx" * 300, {}, SystemFailure, "archive/tar: invalid tar header"),
        (make_tar({"a": "x" * 5000})[:2000], {}, SystemFailure, "unexpected EOF"),
        (b"\x1f\x8b\x08garbage", {}, SystemFailure, None),
    ],
)  # fmt: skip
async def test_errors_before_the_first_step(
    context: bytes, options: dict[str, str], kind: type[EngineError], error: str | None, engine: Engine
) -> None:
    with pytest.raises(kind) as caught:
        await engine.build(None, None, context=context, **options)
    assert error is None or str(caught.value) == error
    assert engine.events == []


async def test_scratch_alone_is_no_image(engine: Engine) -> None:
    with pytest.raises(SystemFailure, match=r"No image was generated\. Is your Dockerfile empty\?"):
        await engine.build("FROM scratch\n")
    with pytest.raises(SystemFailure, match=r"No image was generated\. Is your Dockerfile empty\?"):
        await engine.build("ARG x\n")


async def test_scratch_takes_the_platform(engine: Engine) -> None:
    image_id = await engine.build("FROM scratch\nCMD x\n", platform=Platform("linux", "arm64", "v8"))
    found = json.loads(engine.images.documents[image_id])
    assert (found["os"], found["architecture"], found["variant"]) == ("linux", "arm64", "v8")
    assert found["rootfs"] == {"type": "layers"}
    assert engine.images.parents[image_id] == ""
    # and another platform is another step
    assert image_id != await engine.build("FROM scratch\nCMD x\n")


async def test_a_lower_case_dockerfile_will_do(engine: Engine) -> None:
    await engine.build(None, context=make_tar({"dockerfile": "FROM base\n"}))


async def test_the_dockerfile_may_be_a_link(engine: Engine) -> None:
    await engine.build(None, context=make_tar({"Dockerfile": member(b"2", linkname="d/f"), "d/f": "FROM base\n"}))


async def test_ignored_dockerfile_and_ignore_file_are_hidden(engine: Engine) -> None:
    files = {".dockerignore": "Dockerfile\n.dockerignore\nb\n", "a": "1", "b": "2"}
    image_id = await engine.build("FROM base\nCOPY . /x/\n", files)
    names = [name for name, *_ in engine.listing(image_id)]
    # b was left out by the client if it was to be left out: what is in the context counts
    assert names == ["x", "x/a", "x/b"]


@pytest.mark.parametrize("pack", ["gzip", "bz2", "lzma"])
async def test_a_compressed_context(pack: str, engine: Engine) -> None:
    context = __import__(pack).compress(make_tar({"Dockerfile": "FROM base\nCOPY Dockerfile /\n"}))
    image_id = await engine.build(None, context=context)
    assert engine.layers.content(engine.top(image_id), "Dockerfile") == b"FROM base\nCOPY Dockerfile /\n"
    assert list(engine.workspace.iterdir()) == []


async def test_cache_follows_content_not_times(engine: Engine) -> None:
    text = "FROM base\nCOPY a /a\nRUN x\n"

    async def rebuilt(files: dict[str, str], mtime: int = 1, **options: object) -> int:
        context = make_tar({"Dockerfile": text, **files}, mtime)
        before = len(engine.runner.steps)
        await engine.build(None, None, context=context, **options)
        return len(engine.runner.steps) - before

    assert await rebuilt({"a": "1"}) == 1
    assert await rebuilt({"a": "1"}, mtime=2) == 0
    assert await rebuilt({"a": "2"}) == 1
    assert await rebuilt({"a": "1"}) == 0
    assert await rebuilt({"a": "1"}, no_cache=True) == 1
    assert await rebuilt({"a": "1", "b": "unused"}) == 0
    text = "FROM base\nCOPY a /b\nRUN x\n"
    assert await rebuilt({"a": "1"}) == 1


async def test_a_change_reruns_only_what_comes_after(engine: Engine) -> None:
    text = "FROM base\nCOPY package.json /\nRUN install\nCOPY . /app\nRUN check\n"
    await engine.build(text, {"package.json": "{}", "server.js": "1"})
    engine.runner.steps.clear()
    await engine.build(text, {"package.json": "{}", "server.js": "2"})
    assert [step.args[-1] for step in engine.runner.steps] == ["check"]


async def test_arguments_are_part_of_a_run_from_their_declaration_on(engine: Engine) -> None:
    text = "FROM base\nRUN first\nARG A\nRUN second\n"
    for value, expected in (("1", ["first", "second"]), ("2", ["second"]), ("1", [])):
        engine.runner.steps.clear()
        await engine.build(text, build_args={"A": value})
        assert [step.args[-1] for step in engine.runner.steps] == expected


async def test_unused_arguments_are_named(engine: Engine) -> None:
    await engine.build(
        "ARG M\nFROM base\nARG A\n", build_args={"Z": "1", "Y": None, "A": "2", "M": "3", "no_proxy": "x"}
    )
    assert "[Warning] One or more build-args [Y Z] were not consumed" in engine.lines()


async def test_labels_of_the_request_are_steps_of_the_last_stage(engine: Engine) -> None:
    image_id = await engine.build("FROM base AS a\nFROM base AS b\n", labels={"z": "$HOME", "a": "1 2"}, target="a")
    assert engine.lines()[2:3] == ["Step 2/3 : LABEL a=1 2"]
    assert json.loads(engine.images.documents[image_id])["config"]["Labels"] == {"a": "1 2", "z": "$HOME"}


async def test_every_stage_up_to_the_target_is_built(engine: Engine) -> None:
    await engine.build("FROM base AS a\nRUN A\nFROM base AS b\nRUN B\nFROM base AS c\nRUN C\n", target="B")
    assert [step.args[-1] for step in engine.runner.steps] == ["A", "B"]
    assert engine.lines()[0] == "Step 1/4 : FROM base AS a"


async def test_a_stage_name_is_taken_once(engine: Engine) -> None:
    with pytest.raises(SystemFailure, match="a stage name already used"):
        await engine.build("FROM base AS a\nFROM base AS A\n")


async def test_pull_progress_passes_through(engine: Engine) -> None:
    await engine.build("FROM base\n", pull=True, platform=Platform("linux", "arm64"))
    assert Record({"status": "Pulling from library/base", "id": "latest"}) in engine.events
    assert engine.images.resolved == [("base", Platform("linux", "arm64"), True)]


async def test_triggers(engine: Engine) -> None:
    engine.runner.behave = say
    base = await engine.build(
        "FROM base\nONBUILD RUN trig\nONBUILD COPY a /trig\nONBUILD ARG X=1\nONBUILD ENV a=$X\n", tags=("onb",)
    )
    assert len(json.loads(engine.images.documents[base])["config"]["OnBuild"]) == 4
    image_id = await engine.build("FROM onb\nRUN main\n", {"a": "1"})
    assert engine.lines() == [
        "Step 1/2 : FROM onb",
        "# Executing 4 build triggers",
        " ---> Running in <id>",
        "/bin/sh -c trig in /",
        " ---> Removed intermediate container <id>",
        " ---> Running in <id>",
        " ---> Removed intermediate container <id>",
        " ---> Running in <id>",
        " ---> Removed intermediate container <id>",
        " ---> <id>",
        "Step 2/2 : RUN main",
        " ---> Running in <id>",
        "/bin/sh -c main in /",
        " ---> Removed intermediate container <id>",
        " ---> <id>",
        "Successfully built <id>",
    ]
    config = json.loads(engine.images.documents[image_id])["config"]
    assert config["OnBuild"] is None  # not inherited
    assert "a=1" in config["Env"]


@pytest.mark.parametrize(
    ("trigger", "error"),
    [
        ("FOO x", r"unknown instruction: FOO \(did you mean FROM\?\)"),
        ("FROM base", "FROM isn't allowed as an ONBUILD trigger"),
        ("RUN a\\nRUN b", "onbuild trigger should be a single expression"),
    ],
)
async def test_triggers_of_strangers(trigger: str, error: str, engine: Engine) -> None:
    engine.add_image("evil", {"x": "1"}, b'{"OnBuild":["%b"]}' % trigger.encode())
    with pytest.raises(EngineError, match=error):
        await engine.build("FROM evil\n")


async def test_a_trigger_may_leave_a_trigger_but_runs_once(engine: Engine) -> None:
    engine.add_image("evil", {"x": "1"}, b'{"OnBuild":["ONBUILD RUN x"]}')
    image_id = await engine.build("FROM evil\n")
    assert json.loads(engine.images.documents[image_id])["config"]["OnBuild"] == ["RUN x"]
    assert engine.runner.steps == []


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b'{"config":{"Env":[1]}}', b"[" * 100_000, b'{"config":5}'])
async def test_a_broken_base_image_is_refused(document: bytes, engine: Engine) -> None:
    engine.images.add("broken", document)
    with pytest.raises(InvalidParameter, match="invalid image configuration"):
        await engine.build("FROM broken\nRUN x\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="the fake layer store cannot give files away")
async def test_copy_between_stages_keeps_owners_unless_told(engine: Engine) -> None:
    text = "FROM base AS one\nCOPY --chown=7:8 a /d/a\nFROM scratch\nCOPY --from=one /d/a /x\nCOPY --from=0 /d /y\n"
    image_id = await engine.build(text, {"a": "1"})
    assert engine.listing(image_id) == [("y", "5", 0o755, 0, 0), ("y/a", "0", 0o644, 7, 8)]
    image_id = await engine.build(f"{text}COPY --from=one --chown=1 /d /z\n", {"a": "1"})
    assert engine.listing(image_id) == [("z", "5", 0o755, 1, 1), ("z/a", "0", 0o644, 1, 1)]


async def test_copy_from_another_image(engine: Engine) -> None:
    engine.add_image("tools", {"bin/tool": "#!", "link": member(b"2", linkname="/bin/tool")}, b"{}")
    image_id = await engine.build("FROM scratch\nCOPY --from=tools /link /bin/* /t/\n")
    assert [name for name, *_ in engine.listing(image_id)] == ["t", "t/link", "t/tool"]
    assert engine.layers.content(engine.top(image_id), "t/link") == b"#!"


async def test_add_downloads(engine: Engine) -> None:
    engine.fetcher.pages["http://h/d/f.txt"] = (
        b"hello",
        Fetched(last_modified="Tue, 02 Jan 2024 03:04:05 GMT"),
    )
    engine.fetcher.pages["http://h/"] = (b"named", Fetched(content_disposition='attachment; filename="n.txt"'))
    image_id = await engine.build("FROM base\nADD http://h/d/f.txt http://h/ /x/\n")
    assert engine.listing(image_id)[1:] == [("x/f.txt", "0", 0o600, 0, 0), ("x/n.txt", "0", 0o600, 0, 0)]
    dates = {item.name: item.mtime for item in engine.layers.members(engine.top(image_id))}
    assert (dates["x/f.txt"], dates["x/n.txt"]) == (1704164645, 0)
    texts = [event.text for event in engine.events if isinstance(event, Stream)]
    assert texts.count("\n") == 4  # an empty line after each download
    with pytest.raises(SystemFailure, match="ADD failed: failed to GET http://h/none with status 404"):
        await engine.build("FROM base\nADD http://h/none /x\n")
    engine.fetcher.pages["http://h/"] = (b"", Fetched(content_disposition='attachment; filename=".."'))
    with pytest.raises(SystemFailure, match="ADD failed: cannot determine filename for source http://h/"):
        await engine.build("FROM base\nADD http://h/ /x/\n")
    assert list(engine.workspace.iterdir()) == []


async def test_cancelling_stops_a_run_and_leaves_nothing(engine: Engine) -> None:
    started = asyncio.Event()
    stopped: list[bool] = []

    class Runner:
        async def run(self, step: RunStep, output: Callable[[int, bytes], None]) -> RunResult:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append(True)
            raise AssertionError

    engine.runner = Runner()  # type: ignore[assignment]
    work = asyncio.get_running_loop().create_task(engine.build("FROM base\nRUN x\n"))
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert stopped == [True]
    assert list(engine.images.documents) == [engine.base]
    assert list(engine.workspace.iterdir()) == []


async def test_cancelling_stops_a_copy_before_its_files_go(engine: Engine, tmp_path: Path) -> None:
    reading = threading.Event()
    ended: list[BaseException] = []
    apply = engine.layers.apply

    def slow(stream: object) -> str:
        try:
            while True:
                reading.set()
                assert stream.read(512)  # type: ignore[attr-defined]
                stream._at = 0  # type: ignore[attr-defined]  # an endless layer
        except BaseException as error:
            ended.append(error)
            raise

    engine.layers.apply = slow  # type: ignore[method-assign]
    work = asyncio.get_running_loop().create_task(engine.build("FROM base\nCOPY a /\n", {"a": "x" * 5000}))
    await asyncio.to_thread(reading.wait)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [str(error) for error in ended] == ["build cancelled"]
    engine.layers.apply = apply  # type: ignore[method-assign]


async def test_cancelling_twice_waits_for_the_thread_and_gives_back_what_it_opened(engine: Engine) -> None:
    mounting, go_on = threading.Event(), threading.Event()
    mount = engine.layers.mount

    def slow(diff_ids: Sequence[str]) -> int:
        mounting.set()
        go_on.wait(10)
        return mount(diff_ids)

    engine.layers.mount = slow  # type: ignore[method-assign]
    before = sorted(os.listdir("/proc/self/fd"))
    work = asyncio.get_running_loop().create_task(engine.build("FROM base\nCOPY --from=base /file /x\n"))
    await asyncio.to_thread(mounting.wait)
    for _ in range(2):
        work.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not work.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_the_hosts_failures_do_not_show_its_paths(engine: Engine) -> None:
    def full(diff_ids: Sequence[str]) -> int:
        raise OSError(28, "No space left on device", "/some/where")

    engine.layers.mount = full  # type: ignore[method-assign]
    with pytest.raises(SystemFailure) as caught:
        await engine.build("FROM base\nCOPY a /\n", {"a": "1"})
    assert str(caught.value) == "no space left on device"


async def test_the_context_file_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "context"
    path.write_bytes(make_tar({"Dockerfile": "FROM base\n"}))
    with path.open("rb") as file:
        request = BuildRequest(context_fd=file.fileno(), workspace=tmp_path, host=HOST)
        await build(request, engine.ports(), lambda event: None)
        assert file.tell() == 0


async def test_missing_base_is_not_found(engine: Engine) -> None:
    with pytest.raises(NotFound):
        await engine.build("FROM nope\n")
