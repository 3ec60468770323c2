"""What an engine makes of create requests: the reply, what inspect shows, and, where a container is started, how that
went and what it printed.

``golden/create_requests.json`` holds requests with what Docker 28.5.2 made of them, one a line. To record anew, with an
engine that has nothing but busybox:latest:

    python -m tests.observations /path/of/its.sock
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.api import VERSION, Api, Reply

FILE = Path(__file__).parent / "golden" / "create_requests.json"
ABSENT = "<absent>"

Case = dict[str, Any]


def load() -> list[Case]:
    """Every case: ``topic``, ``name``, what is sent (``body``, or ``raw`` text; ``version``, ``query``), whether it is
    to be started, whether what comes out depends on the ``machine``, and what is ``expected``."""
    cases: list[Case] = json.loads(FILE.read_text())
    return cases


def machine(api: Api) -> list[Any]:
    """What those cases depend on that are marked so: limits that this kernel has, and their place."""
    info = api.get("/info").ok()
    return [info["CgroupVersion"], info["NCPU"], info["SwapLimit"], info["KernelVersion"].split(".")[0]]


class Observer:
    """Looks at one engine. What a container shows is told as what differs from one that asks for nothing."""

    def __init__(self, api: Api) -> None:
        self._path = api.path
        self._plain: dict[str, Any] = {}
        self._plain = self({"body": {}})["shown"]

    def __call__(self, case: Case) -> dict[str, Any]:
        """The observation, with the container's id written as ``<id>``. Nothing is left behind."""
        api = Api(self._path, case.get("version", VERSION))
        body = case["raw"].encode() if "raw" in case else {"Image": "busybox:latest", "Cmd": ["true"], **case["body"]}
        headers = {"Content-Type": "application/json"}
        reply = api.call("POST", "/containers/create", body, headers=headers, **case.get("query", {}))
        seen: dict[str, Any] = {"create": _told(reply, "Warnings")}
        if reply.status != 201:
            refused: dict[str, Any] = json.loads(_anonymous(json.dumps(seen), ABSENT))
            return refused
        container = str(reply.json()["Id"])
        try:
            document = api.get(f"/containers/{container}/json").ok()
            shown = _flat({key: document[key] for key in ("HostConfig", "Config")})
            if case.get("start"):
                seen |= _start(api, container)
        finally:
            api.delete(f"/containers/{container}", force="1", v="1")
        shown = json.loads(_anonymous(json.dumps(shown), container))
        seen["shown"] = {path: value for path, value in shown.items() if self._plain.get(path, ABSENT) != value}
        seen["shown"] |= {path: ABSENT for path in self._plain if path not in shown}
        observation: dict[str, Any] = json.loads(_anonymous(json.dumps(seen), container))
        return observation


def _anonymous(text: str, container: str) -> str:
    text = text.replace(container, "<id>").replace(container[:12], "<id>")
    text = re.sub(r"[0-9a-f]{64}", "<another id>", text)
    return re.sub(r"(/sys/fs/cgroup/[a-z,]+)/[^/ ]+/<id>", r"\1/<parent>/<id>", text)


def _start(api: Api, container: str) -> dict[str, Any]:
    reply = api.post(f"/containers/{container}/start")
    seen: dict[str, Any] = {"start": _told(reply)}
    if reply.status == 204:
        api.post(f"/containers/{container}/wait").ok()
        seen["output"] = _unframe(api.get(f"/containers/{container}/logs", stdout="1", stderr="1").body)
    state = api.get(f"/containers/{container}/json").ok()["State"]
    seen["state"] = [state["Status"], state["ExitCode"], state["Error"]]
    return seen


def _told(reply: Reply, field: str = "") -> list[Any]:
    if reply.status >= 400:
        return [reply.status, reply.json()["message"]]
    return [reply.status, *([reply.json()[field]] if field else [])]


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _unframe(stream: bytes) -> str:
    text = b""
    while stream:
        size = int.from_bytes(stream[4:8], "big")
        text += stream[8 : 8 + size]
        stream = stream[8 + size :]
    return text.decode(errors="replace")


def main() -> None:
    """Record anew."""
    observe = Observer(Api(sys.argv[1]))
    recorded = [{**case, "expected": observe(case)} for case in load()]
    FILE.write_text("[\n" + ",\n".join(json.dumps(case) for case in recorded) + "\n]\n")


if __name__ == "__main__":
    main()
