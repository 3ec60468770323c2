#!/usr/bin/env python3
"""Writes compat-matrix/README.md: the contract's operations and parameters, and what passed tests have used of them.

    sudo tests/run -n 2 --dist loadfile --matrix /tmp/used.jsonl
    .venv/bin/python compat-matrix/generate.py /tmp/used.jsonl

An operation is ``tested`` when a passed test used it, ``verified`` when that test is one of those that also pass on
Docker's engine (tests/client, marked parity), ``answers`` when the engine has it and no test used it, ``absent`` when
it answers 501. A pure function of its inputs: never edit the table by hand.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
HEAD = """\
# Compatibility matrix

Written by `generate.py` from `api/engine.yaml` and a test run; see there for what the words mean. Not edited by hand.

"""


def used_by(log: Path) -> dict[tuple[str, str], set[str]]:
    """(operation, parameter) → the tests that used it; the empty parameter stands for the operation itself."""
    used: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        for operation, parameter in entry["used"]:
            used[operation, parameter].add(entry["test"])
    return used


def status(present: bool, tests: set[str]) -> str:
    """The cell's word."""
    if not present:
        return "absent"
    if any(test.startswith("tests/client/") and "test_crash" not in test for test in tests):
        return "verified"
    return "tested" if tests else "answers"


def rows(contract: dict[str, Any], used: dict[tuple[str, str], set[str]]) -> list[tuple[str, str, str, str, str]]:
    """Operation, request, state, number of tests, parameters and theirs."""
    table: list[tuple[str, str, str, str, str]] = []
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            name = operation["operationId"]
            present = operation.get("x-compatd-status", "present") == "present"
            tests = used.get((name, ""), set())
            parameters: list[str] = []
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query" and present:
                    ignored = parameter.get("x-compatd-status") == "ignored"
                    word = "ignored" if ignored else status(True, used.get((name, parameter["name"]), set()))
                    parameters.append(parameter["name"] if word == "verified" else f"{parameter['name']} ({word})")
            count = str(len(tests)) if tests else ""
            table.append((name, f"`{method.upper()} {path}`", status(present, tests), count, ", ".join(parameters)))
    return table


def main() -> None:
    contract = yaml.safe_load((HERE.parent / "api" / "engine.yaml").read_text())
    table = rows(contract, used_by(Path(sys.argv[1])))
    counts: dict[str, int] = defaultdict(int)
    for row in table:
        counts[row[2]] += 1
    summary = ", ".join(
        f"{counts[word]} {word}" for word in ("verified", "tested", "answers", "absent") if counts[word]
    )
    lines = [HEAD + f"{len(table)} operations: {summary}.\n"]
    lines.append("| operation | request | state | tests | parameters, verified where nothing else is said |")
    lines.append("|---|---|---|---|---|")
    lines += [f"| {' | '.join(row)} |" for row in table]
    (HERE / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
