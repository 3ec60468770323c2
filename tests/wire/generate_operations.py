"""Write compatd/wire/operations.py from api/engine.yaml. Run it after editing the contract: a test compares them."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "api" / "engine.yaml"
OPERATIONS = ROOT / "compatd" / "wire" / "operations.py"

HEAD = '''"""The operations of the Engine API, generated from api/engine.yaml by tests/wire/generate_operations.py."""

from typing import NamedTuple


class Operation(NamedTuple):
    """One operation; ``since`` is the first API version that has it, ``present`` whether this engine does."""

    id: str
    method: str
    path: str
    since: tuple[int, int]
    present: bool


OPERATIONS: tuple[Operation, ...] = (
'''


def generate(contract: dict[str, Any]) -> str:
    """The text of the module."""
    lines: list[str] = []
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            major, minor = operation["x-compatd-since"].split(".")
            present = operation["x-compatd-status"] == "present"
            lines.append(
                f'    Operation("{operation["operationId"]}", "{method.upper()}", "{path}",'
                f" ({major}, {minor}), {present}),\n"
            )
    return HEAD + "".join(lines) + ")\n"


if __name__ == "__main__":
    OPERATIONS.write_text(generate(yaml.safe_load(CONTRACT.read_text())))
