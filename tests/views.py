"""What a container's process is and finds: asked from inside, and looked at from outside as root.

A view maps sections to lines in which all that differs from one container to the next, or from machine to machine, is
replaced by a name; what is left is compared with what was recorded on Docker's engine (tests/golden/isolation).
Works wherever the engine's processes are seen in this process's /proc.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from compatd.runtime.capabilities import NAMES

View = dict[str, list[str]]

_MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list "
    "/proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap"
).split()
_WRITTEN = (
    "/ /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger /proc/sys/kernel/domainname "
    "/proc/sys/net/ipv4/ip_forward /sys /sys/fs/cgroup"
).split()
_SYSCTLS = (
    "kernel/domainname kernel/msgmax kernel/msgmnb kernel/msgmni kernel/sem kernel/shmmni kernel/shm_rmid_forced "
    "fs/mqueue/msg_max fs/mqueue/queues_max net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range"
).split()

_NODES = ("full", "null", "ptmx", "random", "tty", "urandom", "zero")

# Run by the process itself, for which BusyBox is enough. Nothing is left behind.
SCRIPT = f"""
section() {{ echo "=== $1"; }}
section inside
grep -E '^(Umask|Uid|Gid|Groups|Seccomp|NoNewPrivs|Cap|SigBlk)' /proc/self/status
section environment
tr '\\0' '\\n' </proc/$$/environ | sort
section identity
id -u; id -g; id -G; pwd; readlink /proc/self/root
section descriptors
for fd in /proc/$$/fd/*; do echo "${{fd##*/}} $(readlink $fd)"; done
section processes
ls -ln /proc/1/environ /proc/$$/environ | tr -s ' ' | cut -d' ' -f1,3,4
section mounts
cat /proc/self/mountinfo
section dev
ls -lnA /dev /dev/shm /dev/mqueue 2>/dev/null
section masked
ls -d {" ".join(_MASKED)} 2>/dev/null
section written
for p in {" ".join(_WRITTEN)}; do
  if [ -d $p ]; then t=$(mkdir $p/probe 2>&1 && rmdir $p/probe); else t=$( (: >>$p) 2>&1); fi
  echo "$p: ${{t##*: }}"
done
section files
for p in /etc/hosts /etc/hostname /etc/resolv.conf /etc/mtab /.dockerenv; do
  ls -ln $p | tr -s ' ' | cut -d' ' -f1,3,4; readlink $p
done
section sysctls
for p in {" ".join(_SYSCTLS)}; do echo "$p = $(tr -s '\\t\\n' ' ' </proc/sys/$p)"; done
section interfaces
ls -1 /sys/class/net
section keys
grep -o 'perm.*_ses.*' /proc/keys | tr -s ' '
section end
"""


def sections(text: str) -> View:
    """What ``SCRIPT`` has printed."""
    found: View = {}
    for line in text.splitlines():
        if line.startswith("=== "):
            found[line[4:]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def inside(text: str, container_id: str) -> View:
    """``SCRIPT``'s output as a view."""
    view = sections(text)
    assert view.pop("end", None) is not None, text[-2000:]
    view["inside"] = [_status(line) for line in view["inside"]]
    view["descriptors"] = [re.sub(r":\[\d+\]", "", line) for line in view["descriptors"] if int(line.split()[0]) < 3]
    covered = {line.split()[4] for line in view["mounts"]}
    view["masked"] = sorted({"hidden" if path in covered else "shown" for path in view["masked"]})
    view["mounts"] = _mounts(view["mounts"])
    view["dev"] = _devices(view["dev"])
    view["keys"] = sorted(line for line in view["keys"] if container_id in line)
    return _named(view, container_id)


def outside(pid: int, container_id: str) -> View:
    """The process as root sees it on the host."""
    proc = Path(f"/proc/{pid}")
    status = (proc / "status").read_text()
    parent = Path("/proc", _field(status, "PPid")[0])
    stat = (proc / "stat").read_text().rpartition(") ")[2].split()
    wanted = r"(Umask|TracerPid|Uid|Gid|Groups|Threads|NoNewPrivs|Seccomp\w*|Cap\w+|Sig(Blk|Ign)|THP_enabled):"
    view: View = {
        "status": [_status(line) for line in status.splitlines() if re.match(wanted, line)],
        "limits": [_limit(*lines) for lines in zip(_limits(proc), _limits(parent), strict=True)],
        "attributes": [
            f"{name}: {(proc / name).read_text().strip()}"
            for name in ("oom_score_adj", "setgroups", "timerslack_ns", "coredump_filter", "personality")
        ],
        "id maps": [" ".join((proc / name).read_text().split()) for name in ("uid_map", "gid_map", "projid_map")],
        "audit": [
            f"{name} {'inherited' if (proc / name).read_text() == (parent / name).read_text() else 'changed'}"
            for name in ("loginuid", "sessionid")
            if (proc / name).exists()
        ],
        "links": [f"{name} {os.readlink(proc / name)}" for name in ("cwd", "root", "exe")],
        "command": [(proc / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode().splitlines()[0]],
        "environ": sorted((proc / "environ").read_bytes().decode().strip("\0").split("\0")),
        "open": [_descriptor(proc, fd) for fd in sorted(os.listdir(proc / "fd"), key=int)],
        "dumpable": [f"{_owner(proc / 'environ')} {'yes' if _owner(proc / 'environ') == _owner_of(status) else 'no'}"],
        "session": [
            f"leads its group: {stat[2] == str(pid)}, its session: {stat[3] == str(pid)}; terminal: {stat[4] != '0'}",
            f"nice {stat[16]}, priority {stat[15]}, threads {stat[17]}, policy {stat[38]}, exit signal {stat[35]}",
        ],
        "namespaces": [
            f"{name} {'host' if _same(proc / 'ns' / name) else 'own'}"
            for name in ("cgroup", "ipc", "mnt", "pid", "user", "uts")
        ],
        "cgroup": sorted({line.rpartition(":")[2].rpartition("/")[2] for line in _lines(proc / "cgroup")}),
    }
    return _named(view, container_id)


def _named(view: View, container_id: str) -> View:
    names = {container_id: "<id>", container_id[:12]: "<short id>", os.uname().nodename: "<host name>"}
    pattern = re.compile(rf"{container_id}|\b({container_id[:12]}|{re.escape(os.uname().nodename)})\b")
    return {key: [pattern.sub(lambda match: names[match[0]], line) for line in lines] for key, lines in view.items()}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _same(namespace: Path) -> bool:
    return os.readlink(namespace) == os.readlink(Path("/proc/self/ns") / namespace.name)


def _owner(path: Path) -> str:
    return f"{path.stat().st_uid}:{path.stat().st_gid}"


def _owner_of(status: str) -> str:
    return ":".join(_field(status, name)[1] for name in ("Uid", "Gid"))


def _field(status: str, name: str) -> list[str]:
    match = re.search(rf"^{name}:(.*)", status, re.M)
    assert match
    return match[1].split()


def _status(line: str) -> str:
    """Capability sets by name; ``all`` is all that this machine can give."""
    name, _, value = line.partition(":")
    if name == "SigIgn":
        value = f"{int(value, 16) & ~1:016x}"  # runc's execs ignore SIGHUP now and then
        return f"{name}: {value}"
    if not name.startswith("Cap"):
        return re.sub(r"\s+", " ", line).strip()
    bits = int(value, 16)
    if bits == int(_field(Path("/proc/self/status").read_text(), "CapBnd")[0], 16):
        return f"{name}: all"
    return " ".join((f"{name}:", *(known[4:] for number, known in enumerate(NAMES) if bits >> number & 1)))


def _limits(proc: Path) -> list[str]:
    return _lines(proc / "limits")[1:]


def _limit(own: str, parents: str) -> str:
    return f"{own[:26].strip()}: {'inherited' if own == parents else ' '.join(own[26:].split())}"


def _descriptor(proc: Path, fd: str) -> str:
    flags = int(_field((proc / "fdinfo" / fd).read_text(), "flags")[0], 8)
    info = (proc / "fd" / fd).stat()
    access = ("read", "write", "both")[flags & os.O_ACCMODE] + (" nonblocking" if flags & os.O_NONBLOCK else "")
    target = re.sub(r":\[\d+\]|(?<=/pts/)\d+", "", os.readlink(proc / "fd" / fd))
    return f"{fd} {target} {access} {info.st_mode & 0o7777:o} {info.st_uid}:{info.st_gid}"


def _mounts(table: Sequence[str]) -> list[str]:
    """Where, how and what, sorted: the kernel lists them by age, which is how an engine goes about it. Paths of the
    host and what is below /sys/fs/cgroup, which depends on its version, are summed up."""
    found: set[str] = set()
    for line in table:
        fields = line.split()
        root, target, options = fields[3:6]
        kind, source, own = fields[fields.index("-") + 1 :][:3]
        shared = sorted(word.partition(":")[0] for word in fields[6 : fields.index("-")])
        if target.startswith("/sys/fs/cgroup"):
            if kind != "tmpfs":
                found.add(f"(cgroup) {options}")
            continue
        if target in ("/", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/sbin/docker-init"):
            root, kind, source, own, shared = "", "", "", "", []
        elif target == "/sys":
            own = ""  # one superblock for each network namespace
        shown = " ".join(filter(None, (target, options, *shared, root, kind, source, own)))
        found.add(shown)
    # Which of them exist is the machine's.
    hidden = {line for line in found if line.split()[0] in _MASKED}
    kinds = {line.partition(" ")[2] for line in hidden}
    return sorted(found - hidden) + sorted(f"(masked) {kind}" for kind in kinds)


def _devices(listing: Sequence[str]) -> list[str]:
    """Lines of ls -ln, without sizes and dates; the host's own devices are summed up."""
    lines: list[str] = []
    found: set[str] = set()
    for line in listing:
        words = re.sub(r",\s+", ",", line).split()
        if len(words) < 9 or " core -> " in line:  # a heading; whether there is a /proc/kcore is the machine's
            continue
        name = words.index("->") - 1 if "->" in words else len(words) - 1
        if words[0][0] in "bc" and words[name] not in _NODES:
            found.add(words[name])
        elif words[name] not in ("net", "cpu", "mapper", "snd", "dri", "input", "vfio", "block", "char", "disk"):
            lines.append(" ".join((words[0], *words[2:4], *([words[4]] if "," in words[4] else []), *words[name:])))
    if found:
        host = {entry.name for entry in Path("/dev").iterdir() if entry.is_block_device() or entry.is_char_device()}
        lines.append(f"(host devices) {'all' if found >= host - {'console', *_NODES} else ' '.join(sorted(found))}")
    return lines


def difference(recorded: View, found: View) -> list[str]:
    """``- section: line`` for what only the first has, ``+ section: line`` for what only the second has."""
    lines: list[str] = []
    for section in sorted({*recorded, *found}):
        before, after = recorded.get(section, []), found.get(section, [])
        lines += [f"- {section}: {line}" for line in before if line not in after]
        lines += [f"+ {section}: {line}" for line in after if line not in before]
    return lines
