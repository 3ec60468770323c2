"""The first scenario of a new user: a Dockerfile on ubuntu:16.04, built and run by the stock CLI."""

import re
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.conftest import have
from tests.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.parity]

DOCKERFILE = """\
FROM ubuntu:16.04

COPY helloworld /usr/local/bin
RUN chmod +x /usr/local/bin/helloworld

CMD ["helloworld"]
"""
FIRST_BUILD = """\
Sending build context to Docker daemon  3.072kB\r\r
Step 1/4 : FROM ubuntu:16.04
16.04: Pulling from library/ubuntu
<1>: Pulling fs layer
<1>: Download complete
<1>: Pull complete
Digest: sha256:<digest>
Status: Downloaded newer image for ubuntu:16.04
 ---> <2>
Step 2/4 : COPY helloworld /usr/local/bin
 ---> <3>
Step 3/4 : RUN chmod +x /usr/local/bin/helloworld
 ---> Running in <4>
 ---> Removed intermediate container <4>
 ---> <5>
Step 4/4 : CMD ["helloworld"]
 ---> Running in <6>
 ---> Removed intermediate container <6>
 ---> <7>
Successfully built <7>
Successfully tagged helloworld:latest
"""
SECOND_BUILD = """\
Sending build context to Docker daemon  3.072kB\r\r
Step 1/4 : FROM ubuntu:16.04
 ---> <1>
Step 2/4 : COPY helloworld /usr/local/bin
 ---> Using cache
 ---> <2>
Step 3/4 : RUN chmod +x /usr/local/bin/helloworld
 ---> Using cache
 ---> <3>
Step 4/4 : CMD ["helloworld"]
 ---> Using cache
 ---> <4>
Successfully built <4>
Successfully tagged helloworld:latest
"""


def by_reference(text: str) -> str:
    """Short ids become <1>, <2>… in order of appearance, so that which is which stays visible.

    Left out is a line of progress that Docker prints only when it takes its time.
    """
    numbers: dict[str, str] = {}
    text = re.sub(r"^[0-9a-f]{12}: Verifying Checksum\n", "", text, flags=re.M | re.A)
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:<digest>", text)
    return re.sub(
        r"\b[0-9a-f]{12}\b", lambda match: numbers.setdefault(match[0], f"<{len(numbers) + 1}>"), text, flags=re.ASCII
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "helloworld"
    folder.mkdir()
    (folder / "helloworld").write_text('#!/bin/sh\necho "Hello, World!"\n')
    (folder / "helloworld").chmod(0o644)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


def test_hello_world(engine: Engine, cli: Cli, folder: Path) -> None:
    have(lambda: engine.provide("ubuntu:16.04"))
    engine.forget_images()
    built = cli("image", "build", "-t", "helloworld:latest", ".", cwd=folder)
    assert by_reference(built) == FIRST_BUILD
    ran = cli.call("container", "run", "helloworld:latest")
    assert ran == (0, "Hello, World!\n", "")

    again = cli("image", "build", "-t", "helloworld:latest", ".", cwd=folder)
    assert by_reference(again) == SECOND_BUILD
    assert again.splitlines()[-2] == built.splitlines()[-2]

    assert (
        cli("image", "inspect", "-f", "{{json .Config.Cmd}} {{len .RootFS.Layers}}", "helloworld")
        == '["helloworld"] 3\n'
    )
    history = cli("image", "history", "--no-trunc", "--format", "{{.CreatedBy}}", "helloworld").splitlines()
    assert history[0] == '/bin/sh -c #(nop)  CMD ["helloworld"]'
    assert history[1] == "/bin/sh -c chmod +x /usr/local/bin/helloworld"
    assert re.fullmatch(r"/bin/sh -c #\(nop\) COPY file:[0-9a-f]{64} in /usr/local/bin ", history[2])
    listed = cli("container", "ls", "-a", "--format", "{{.Image}}|{{.Command}}|{{.Status}}").splitlines()
    assert len(listed) == 1
    assert re.fullmatch(r'helloworld:latest\|"helloworld"\|Exited \(0\) .* ago', listed[0])


def test_quiet_build_prints_the_id_alone(engine: Engine, cli: Cli, folder: Path) -> None:
    have(lambda: engine.provide("ubuntu:16.04"))
    printed = cli("build", "-q", "-t", "helloworld:quiet", ".", cwd=folder)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", printed)
    assert cli("run", "--rm", "helloworld:quiet") == "Hello, World!\n"
    assert cli("image", "inspect", "-f", "{{.Id}}", "helloworld:quiet") == printed


def test_pull_prints_what_docker_prints(engine: Engine, cli: Cli) -> None:
    have(lambda: engine.provide("busybox:latest"))
    engine.forget_images()
    expected = """\
latest: Pulling from library/busybox
<1>: Pulling fs layer
<1>: Download complete
<1>: Pull complete
Digest: sha256:<digest>
Status: Downloaded newer image for busybox:latest
docker.io/library/busybox:latest
"""
    assert by_reference(cli("pull", "busybox")) == "Using default tag: latest\n" + expected
    assert (
        by_reference(cli("pull", "busybox:latest"))
        == """\
latest: Pulling from library/busybox
Digest: sha256:<digest>
Status: Image is up to date for busybox:latest
docker.io/library/busybox:latest
"""
    )
    engine.forget_images()
    ran = cli.call("run", "--rm", "busybox", "echo", "hi")
    assert (ran.code, ran.out) == (0, "hi\n")
    assert by_reference(ran.err) == "Unable to find image 'busybox:latest' locally\n" + expected.replace(
        "docker.io/library/busybox:latest\n", ""
    )
