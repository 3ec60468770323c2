"""The columns of ps(1), under all the names that procps-ng 4 has for them (its "standard format specifiers")."""

from dataclasses import dataclass

from compatd.runtime.columns import SOURCES, Key, Text
from compatd.runtime.processes import Host

# Per line: the source, then who has it (P only processes, T only threads, = both; for listings with both kinds of
# rows), how it stands (L left, R right, U left unless numeric, W likewise, S signals, * takes what it needs) and its
# width, then the names with their headers where those are not the name in capitals.
_TABLE = """
agid =R5 ag_id=AGID
agnice =R4 ag_nice=AGNI
args P*27 args=COMMAND cmd command
bsdstart =R6 bsdstart=START
bsdtime =R6 bsdtime=TIME
c =R2 c util=C
cgname P*27 cgname
cgroup P*27 cgroup
cgroupns =R10 cgroupns
class TL3 class=CLS policy=POL
class TR3 cls
comm P*15 comm=COMMAND ucmd=CMD ucomm=COMMAND
context =L31 context label zone
cp =R3 cp
docker =L12 docker
drs PR5 drs m_drs=DRS
drs PR4 dsiz
egid =R5 egid gid
egroup =U8 egroup group
eip TR16 eip
environ P*31 environ=ENVIRONMENT
esp TR16 esp
etime =R11 etime=ELAPSED
etimes =R7 etimes=ELAPSED
euid =R5 euid uid
euser =U8 euser uid_hack=UID uname=USER user
exe P*27 exe
fds PR3 fds
fgid =R5 fgid fsgid
fgroup =U8 fgroup fsgroup
flag =R1 f flag=F flags=F
fname PL8 fname=COMMAND
fuid =R5 fsuid fuid
fuser =U8 fsuser fuser
htprv PR5 htprv
htshr PR5 htshr
ipcns =R10 ipcns
lim =R5 lim
lstart =R24 lstart=STARTED
luid =R5 luid
lxc =L8 lxc
majflt =R6 maj_flt=MAJFL majflt pagein
minflt =R6 min_flt=MINFL minflt
mntns =R10 mntns
netns =R10 netns
nice TR3 ni nice=NI
nlwp PR4 nlwp
nlwp PR5 thcount=THCNT
none =L1 addr_1=ADDR
none =L3 cwd
none =L8 login=LOGNAME logname
none =R1 cmaj_flt=- cmin_flt=- cnswap=- poip=-
none =R3 re sl
none =R31 zoneid
none =R4 addr jobc scnt scount=SC tdev usertime=USER
none =R5 acflag=ACFLG acflg alarm ctid inblk inblock=INBLK nivcsw=IVCSW nsignals=NSIGS nsigs nswap nvcsw=VCSW
none =R5 oublk oublock=OUBLK timeout=TMOUT tmout umask xstat
none =R6 cursig msgrcv msgsnd p_ru paddr status systime=SYSTEM u_procp=UPROCP
none =R8 ktrace ktracep rlink uprocp
none =U8 luser
none PL12 project
none PL13 emul
none PR1 jid share=-
none PR12 prmgrp prmid
none PR2 osz=SZ
none PR4 argc m_dt=DT
none PR5 m_lrs=LRS m_swap=SWAP projid
none PRpid tsess tsession=TSESS tsid
none TR1 bnd
none TR3 psxpri=PPR upr usrpri=UPR
none TR4 pset
none TR6 nwchan=WCHAN
none TRpid taskid
none TW6 mwchan
cutime =R1 cutime=-
end_code PR16 end_code=E_CODE
start_code PR16 start_code=S_CODE
utime =R6 utime
vm_lock PR3 vm_lock=LCK
vm_data PR5 vm_data=DATA
vm_exe PR5 vm_exe=EXE
vm_lib PR5 vm_lib=LIB
vm_stack PR5 vm_stack=STACK
resident PR5 m_resident=RES resident=RES
share PR5 m_share=SHRD
numa =R4 numa
oom TR4 oom
oomadj TR5 oomadj
opri TR3 intpri=PRI opri=PRI
pcap TR16 pcap
pcaps TR16 pcaps
pcpu =R4 %cpu pcpu=%CPU
pgid PRpid pgid pgrp
pidns =R10 pidns
pmem PR4 %mem pmem=%MEM
ppid PRpid ppid
pri TR3 pri
pri_api TR3 pri_api=API
pri_bar TR3 pri_bar=BAR
pri_baz TR3 pri_baz=BAZ
pri_foo TR3 pri_foo=FOO
priority TR3 priority=PRI
tgid PRpid pid tgid
psr TR3 cpu lastcpu=C psr
psr TR5 cpuid
pss PR5 pss
rbytes TR5 rbytes
rchars TR5 rchars
rgid =R5 rgid
rgroup =U8 rgroup
rops TR5 rops
rss PL4 sgi_rss=RSS
rss PR5 rss rssize=RSS rsz
rtprio TR6 rtprio
ruid =R5 ruid
ruser =U8 ruser
s TL1 s state=S
sched TR3 sched=SCH
machine =L31 machine
ouid =L5 ouid=OWNER
seat =L11 seat
session =L11 lsession=SESSION
slice =L31 slice
unit =L31 unit
uunit =L31 uunit
sess PRpid sess session=SESS sid
sgi_p TR1 sgi_p=P
sgid =R5 sgid svgid
sgroup =U8 sgroup svgroup
sig =S9 pending sig=PENDING sig_pend=SIGNAL
sigcatch TS9 caught sig_catch=CATCHED sigcatch=CAUGHT
sigignore TS9 ignored sig_ignore=IGNORED sigignore=IGNORED
sigmask TS9 blocked sig_block=BLOCKED sigmask=BLOCKED
size PR5 m_size=SIZE
stackp PR16 stackp start_stack=STACKP
start =R8 start=STARTED
stat TL4 stat
stime =R5 start_time=START stime
suid =R5 suid svuid
supgid P*20 supgid
supgrp P*40 supgrp
suser =U8 suser svuser
swappable PR5 size
sz PR5 sz
tid TRpid lwp spid tid
time =R8 atime=TIME cputime=TIME time
timens =R10 timens
times =R8 cputimes=TIME times=TIME
tpgid PRpid tpgid
trs PR4 trs trss tsiz
trs PR5 m_trs=TRS
tsig =S9 tsig=PENDING
tty4 PL4 tty4=TTY
tty8 PL8 longtname=TTY tname=TTY tt tty=TT tty8=TTY
userns =R10 userns
uss PR5 uss
cuu =R6 cuu=%CUU
cuc =R7 cuc=%CUC
utsns =R10 utsns
vsz PR6 vsize=VSZ vsz
wbytes TR5 wbytes
wcbytes TR5 wcbytes
wchan TW6 wchan wname=WCHAN
wchars TR5 wchars
wops TR5 wops
"""

MACROS = {
    "DFMT": "pid,tname,state,cputime,cmd",
    "DefBSD": "pid,tname,stat,bsdtime,args",
    "DefSysV": "pid,tname,time,cmd",
    "END_BSD": "state,tname,cputime,comm",
    "END_SYS5": "state,tname,time,command",
    "F5FMT": "uname,pid,ppid,c,start,tname,time,cmd",
    "FB_": "pid,tt,stat,time,command",
    "FB_j": "user,pid,ppid,pgid,sess,jobc,stat,tt,time,command",
    "FB_l": "uid,pid,ppid,cpu,pri,nice,vsz,rss,wchan,stat,tt,time,command",
    "FB_u": "user,pid,pcpu,pmem,vsz,rss,tt,stat,start,time,command",
    "FB_v": "pid,stat,time,sl,re,pagein,vsz,rss,lim,tsiz,pcpu,pmem,command",
    "FD_": "pid,tty,time,comm",
    "FD_f": "user,pid,ppid,start_time,tty,time,comm",
    "FD_fj": "user,pid,ppid,start_time,tty,time,pgid,sid,comm",
    "FD_j": "pid,tty,time,pgid,sid,comm",
    "FD_l": "flags,state,uid,pid,ppid,priority,nice,vsz,wchan,tty,time,comm",
    "FD_lj": "flags,state,uid,pid,ppid,priority,nice,vsz,wchan,tty,time,pgid,sid,comm",
    "FL5FMT": "f,state,uid,pid,ppid,pcpu,pri,nice,rss,wchan,start,time,command",
    "FLASK_context": "pid,context,command",
    "HP_": "pid,tty,time,comm",
    "HP_f": "user,pid,ppid,cpu,stime,tty,time,args",
    "HP_fl": "flags,state,user,pid,ppid,cpu,intpri,nice,addr,sz,wchan,stime,tty,time,args",
    "HP_l": "flags,state,uid,pid,ppid,cpu,intpri,nice,addr,sz,wchan,tty,time,comm",
    "J390": "pid,sid,pgrp,tname,atime,args",
    "JFMT": "user,pid,ppid,pgid,sess,jobc,state,tname,cputime,command",
    "L5FMT": "f,state,uid,pid,ppid,c,pri,nice,addr,sz,wchan,tt,time,ucmd",
    "LFMT": "uid,pid,ppid,cp,pri,nice,vsz,rss,wchan,state,tname,cputime,command",
    "OL_X": "pid,start_stack,esp,eip,timeout,alarm,stat,tname,bsdtime,args",
    "OL_j": "ppid,pid,pgid,sid,tname,tpgid,stat,uid,bsdtime,args",
    "OL_l": "flags,uid,pid,ppid,priority,nice,vsz,rss,wchan,stat,tname,bsdtime,args",
    "OL_m": "pid,tname,majflt,minflt,m_trs,m_drs,m_size,m_swap,rss,m_share,vm_lib,m_dt,args",
    "OL_s": "uid,pid,pending,sig_block,sig_ignore,caught,stat,tname,bsdtime,args",
    "OL_u": "user,pid,pcpu,pmem,vsz,rss,tname,stat,start_time,bsdtime,args",
    "OL_v": "pid,tname,stat,bsdtime,maj_flt,m_trs,m_drs,rss,pmem,args",
    "RD_": "pid,tname,state,bsdtime,comm",
    "RD_f": "uid,pid,ppid,start_time,tname,bsdtime,args",
    "RD_fj": "uid,pid,ppid,start_time,tname,bsdtime,pgid,sid,args",
    "RD_j": "pid,tname,state,bsdtime,pgid,sid,comm",
    "RD_l": "flags,state,uid,pid,ppid,priority,nice,wchan,tname,bsdtime,comm",
    "RD_lj": "flags,state,uid,pid,ppid,priority,nice,wchan,tname,bsdtime,pgid,sid,comm",
    "RUSAGE": "minflt,majflt,nswap,inblock,oublock,msgsnd,msgrcv,nsigs,nvcsw,nivcsw",
    "SCHED": "user,pcpu,pri,usrpri,nice,psxpri,psr,policy,pset",
    "SFMT": "uid,pid,cursig,sig,sigmask,sigignore,sigcatch,stat,tname,command",
    "Std_f": "uid_hack,pid,ppid,c,stime,tname,time,cmd",
    "Std_fl": "f,s,uid_hack,pid,ppid,c,opri,ni,addr,sz,wchan,stime,tname,time,cmd",
    "Std_l": "f,s,uid,pid,ppid,c,opri,ni,addr,sz,wchan,tname,time,ucmd",
    "THREAD": "user,pcpu,pri,scnt,wchan,usertime,systime",
    "UFMT": "uname,pid,pcpu,pmem,vsz,rss,tt,state,start,time,command",
    "VFMT": "pid,tt,state,time,sl,pagein,vsz,rss,pcpu,pmem,command",
}
AIX = {
    "C": ("pcpu", "%CPU"),
    "G": ("group", "GROUP"),
    "P": ("ppid", "PPID"),
    "U": ("user", "USER"),
    "a": ("args", "COMMAND"),
    "c": ("comm", "COMMAND"),
    "g": ("rgroup", "RGROUP"),
    "n": ("nice", "NI"),
    "p": ("pid", "PID"),
    "r": ("pgid", "PGID"),
    "t": ("etime", "ELAPSED"),
    "u": ("ruser", "RUSER"),
    "x": ("time", "TIME"),
    "y": ("tty", "TTY"),
    "z": ("vsz", "VSZ"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """``text`` is None for what stands between columns."""

    header: str
    width: int
    stands: str
    rows: str
    text: Text | None


def find(name: str, host: Host, header: str | None = None, *, width: int = 0) -> list[Column]:
    """The column of that name, or the columns of that macro; none, if there are not any."""
    if name in MACROS:
        return [column for part in MACROS[name].split(",") for column in find(part, host, header)]
    if name not in _COLUMNS:
        return []
    source, layout, title = _COLUMNS[name]
    own = max(host.pid_width, len(title)) if layout[2:] == "pid" else int(layout[2:])
    return [
        Column(
            header=title if header is None else header,
            width=width or max(own, len(header or "")),
            stands=layout[1],
            rows=layout[0],
            text=SOURCES[source][0],
        )
    ]


def sort_key(name: str) -> Key | None:
    """What ps sorts by for that column, which need not be what it writes."""
    if name not in _COLUMNS:
        return None
    if name == "fgid":
        return SOURCES["flag"][1]
    return SOURCES[_COLUMNS[name][0]][1]


def _read_table() -> dict[str, tuple[str, str, str]]:
    found: dict[str, tuple[str, str, str]] = {}
    for line in _TABLE.strip().splitlines():
        source, layout, *names = line.split()
        for entry in names:
            name, _, title = entry.partition("=")
            found[name] = source, layout, title or name.upper()
    return found


_COLUMNS = _read_table()
