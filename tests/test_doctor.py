"""compatd doctor: its report, and that it leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compatd import doctor
from compatd.doctor import Finding
from tests.engine import ROOT


@pytest.mark.unit
def test_the_exit_code_tells_whether_the_engine_can_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        Finding(name="a", status="ok", detail="fine"),
        Finding(name="b", status="limited", detail="x", remedy="do y"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda data_root: iter(findings))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["ok       a: fine", "limited  b: x", "           → do y"]
    findings.append(Finding(name="c", status="missing", detail="gone"))
    assert doctor.main(["--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["able"] is False
    assert document["findings"][1] == {"name": "b", "status": "limited", "detail": "x", "remedy": "do y"}


@pytest.mark.root
def test_what_it_tries_leaves_no_trace(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text(), os.listdir("/sys/class/net"), os.listdir("/proc/self/fd")
    findings = {finding.name: finding for finding in doctor.examine(tmp_path / "not" / "there" / "yet")}
    assert (Path("/proc/self/mountinfo").read_text(), os.listdir("/sys/class/net")) == before[:2]
    assert len(os.listdir("/proc/self/fd")) == len(before[2])
    assert list(tmp_path.iterdir()) == []
    assert {"kernel", "privileges", "namespaces", "image layers", "cgroups", "bridge networks", "firewall"} <= set(
        findings
    )
    assert all(finding.remedy for finding in findings.values() if finding.status == "missing")


@pytest.mark.root
def test_without_privileges_it_says_so() -> None:
    drop = "os.setgroups([]); os.setuid(65534)"
    program = f"import locale, os, sys; from compatd.doctor import main; {drop}; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "missing  privileges: not root\n           → run it with sudo, or as root\n" in done.stdout
