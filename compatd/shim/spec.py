"""What the engine tells a shim: one JSON document per container, and one per exec.

Typed dictionaries rather than classes, because the shim is forked from a process that imports almost nothing.
Every path that lies on the host is one the engine made or checked; every path named ``target`` lies inside the
container and is resolved there, never joined.

Descriptors travel beside the document, in the order in which ``fd`` fields number them (index into the message's
descriptors).
"""

from typing import Literal, NotRequired, TypedDict


class Namespace(TypedDict):
    """How one namespace comes about: a new one, the host's own, or one that a passed descriptor names."""

    mode: Literal["new", "host", "fd"]
    fd: NotRequired[int]


class Namespaces(TypedDict):
    pid: Namespace
    mnt: Namespace
    uts: Namespace
    ipc: Namespace
    net: Namespace
    cgroup: Namespace


class Overlay(TypedDict):
    """The root: read-only layers, topmost first, below a writable directory. All are host paths."""

    lowers: list[str]
    upper: str
    work: str
    volatile: bool  # skip syncs: the upper directory does not outlive the container
    readonly: bool  # remounted read-only once everything is mounted
    propagation: NotRequired[int]  # MS_PRIVATE by default, MS_SLAVE or MS_SHARED (with MS_REC) for such binds


class MountOp(TypedDict):
    """One step of the mount plan, done in order below the new root, before pivoting.

    kind      meaning
    mount     mount ``fstype`` with ``flags`` and ``data`` on ``target``
    bind      bind host path ``source``, or the detached mount ``fd``, on ``target``; ``flags`` (MS_RDONLY, MS_NOSUID,
              …) are then set on it, on the whole tree if ``recursive``; ``propagation`` (MS_RPRIVATE …) last
    mknod     a device node at ``target`` (``mode`` with its type bits, ``device``, ``uid``, ``gid``)
    symlink   ``target`` becomes a link to ``source``
    mask      a file at ``target`` is covered by /dev/null, a directory by an empty read-only tmpfs; absent: skipped
    readonly  ``target`` is bound on itself, read-only; absent: skipped
    """

    kind: Literal["mount", "bind", "mknod", "symlink", "mask", "readonly"]
    target: str
    source: NotRequired[str]
    fd: NotRequired[int]
    fstype: NotRequired[str]
    flags: NotRequired[int]
    data: NotRequired[str]
    recursive: NotRequired[bool]
    propagation: NotRequired[int]
    mode: NotRequired[int]
    device: NotRequired[tuple[int, int]]
    uid: NotRequired[int]
    gid: NotRequired[int]
    copy_up: NotRequired[bool]  # mount of a tmpfs: first fill it with what the image has at target


class Cgroup(TypedDict):
    """Directories to make, values to write there, and ``cgroup.procs`` files to join; done by the shim in this order.

    A directory of the unified hierarchy is joined last (by being born there).
    """

    directories: list[str]
    writes: list[tuple[str, str]]  # (file, value)
    joins: list[str]
    device_program: NotRequired[str]  # cgroup v2: eBPF instructions, base64, attached to ``device_cgroup``
    device_cgroup: NotRequired[str]


class Rlimit(TypedDict):
    resource: int  # RLIMIT_*, include/uapi/asm-generic/resource.h
    soft: int  # -1: no limit
    hard: int


class Capabilities(TypedDict):
    """Bit sets, bit n being capability number n (include/uapi/linux/capability.h)."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class Process(TypedDict):
    """The program to run, and as whom. ``user`` is Docker's form, name or id, with an optional group;
    it is resolved against the container's own /etc/passwd and /etc/group by the shim."""

    args: list[str]
    env: list[str]  # NAME=value; HOME and, with a tty, TERM are added when missing
    cwd: str
    user: str
    groups: list[str]  # supplementary groups, by name or id
    capabilities: Capabilities
    no_new_privileges: bool
    seccomp: NotRequired[str]  # struct sock_filter array, base64
    seccomp_flags: NotRequired[int]  # SECCOMP_FILTER_FLAG_*
    keyring: NotRequired[str]  # session keyring to join; absent: a new one without a name
    apparmor: NotRequired[str]  # profile to change to on exec
    rlimits: list[Rlimit]
    oom_score_adj: NotRequired[int]
    tty: bool
    console_size: NotRequired[tuple[int, int]]  # (height, width)


class Syslog(TypedDict):
    """A syslog server, and how it is spoken to."""

    network: Literal["tcp", "tcp+tls", "udp", "unix", "unixgram"]
    addresses: list[tuple[str, int]]  # numeric, to connect to again; a socket's path has port 0
    priority: int  # the facility, shifted
    format: Literal["", "rfc3164", "rfc5424", "rfc5424micro"]
    tag: str
    server_name: NotRequired[str]  # of the certificate
    ca: NotRequired[str]  # PEM files on the host
    certificate: NotRequired[str]
    key: NotRequired[str]
    skip_verify: NotRequired[bool]


class Journal(TypedDict):
    path: str  # journald's socket
    fields: dict[str, str]  # that every entry has


class Log(TypedDict):
    """Where output is written besides the attached clients. ``none`` writes nothing."""

    driver: Literal["json-file", "local", "syslog", "journald", "none"]
    path: NotRequired[str]  # of a syslog or journald log: its copy for reading, in the local driver's form
    max_size: NotRequired[int]  # bytes; rotation when exceeded; absent: no rotation
    max_file: NotRequired[int]
    compress: NotRequired[bool]
    attrs: NotRequired[dict[str, str]]
    buffer: NotRequired[int]  # bytes that may wait before output is lost; absent: the process waits instead
    fd: NotRequired[int]  # the passed descriptor of a connected socket
    syslog: NotRequired[Syslog]
    journal: NotRequired[Journal]


class Attach(TypedDict):
    """A client's own socket, whose response head has been sent: the shim speaks the stream to it.

    ``fd`` numbers the passed descriptor. ``head`` is what the engine had already read of the client's input, base64.
    Output is multiplexed into 8-byte-headed frames unless the process has a tty, or as ``framed`` says.
    """

    fd: int
    stdin: bool
    stdout: bool
    stderr: bool
    head: NotRequired[str]
    detach_keys: NotRequired[list[int]]  # byte sequence; only with a tty
    framed: NotRequired[bool]
    ends_process: NotRequired[bool]  # of an exec: it is killed when its last client has gone


class Wait(TypedDict):
    """A client's pending wait, whose response head (chunked) has been sent: the shim writes the status into it.

    ``removed`` waits until the engine has said that the container is removed.
    """

    fd: int
    condition: Literal["exit", "removed"]


class Launch(TypedDict):
    """One container. ``state_dir`` is the engine's exec-root/containers/<id>, made by it (0700)."""

    id: str
    state_dir: str
    namespaces: Namespaces
    hostname: str
    domainname: str
    sysctls: dict[str, str]
    overlay: Overlay
    mounts: list[MountOp]
    cgroup: Cgroup
    process: Process
    init: bool  # run a minimal init (reaps, forwards signals) as pid 1 before the program
    open_stdin: bool
    stdin_once: bool  # close stdin when the first attached client has left
    log: Log
    attaches: list[Attach]
    waits: list[Wait]


class Exec(TypedDict):
    """One more process in a running container."""

    exec_id: str
    process: Process
    attach: NotRequired[Attach]  # absent: detached; output goes nowhere
    note: NotRequired[str]  # the engine's own, for the next engine
    cgroup_joins: list[str]


class Exit(TypedDict):
    """How a process ended; ``state_dir/exit`` holds this document for the container's own."""

    code: int  # 128 + n when killed by signal n
    exited_ns: int  # CLOCK_REALTIME
    oom_killed: bool
    error: NotRequired[str]  # the shim could not go on; the process was killed
