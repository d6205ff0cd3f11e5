"""The interposed libc: counts every class of call, each fault happens, the log is in order, and nothing escapes it."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from crash.shim import Calls, Fault, NotPreloadedError, Shim, environment, read_calls, read_trace, stream
from crash.state import State
from layerstore.testing.children import run_child

MUTATING = (
    "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,syncfs,sync_file_range,sync,ftruncate,truncate,fallocate,"
    "unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,chmod,"
    "fchmod,fchmodat,?fchmodat2,chown,lchown,fchown,fchownat,utimensat,utime,utimes,futimesat,setxattr,lsetxattr,"
    "fsetxattr,removexattr,lremovexattr,fremovexattr,copy_file_range,sendfile,splice,open,openat,openat2,creat"
)


def both(work, *names):
    """What the probes *names* say, in a process that has the shim: a list of texts each."""
    given = argparse.Namespace(work=str(work), probes=names)
    return [state.violations for state in stream("tests.crash.test_shim", given)]


def preloaded(given):
    for name in given.probes:
        root = f"{given.work}/{name}"
        os.mkdir(root)
        shim = Shim()
        shim.watch(root)
        shim.share()
        yield State("shim", "probe", name, "kept", violations=[str(x) for x in PROBES[name](shim, root)])


PROBES = {}


def probe(fn):
    PROBES[fn.__name__] = fn
    return fn


def one_of_each(root):
    """(class, call) for each function that Python and LMDB have for changing a disk, in order."""
    from layerstore.system import kernel

    file, other = f"{root}/file", f"{root}/other"
    directory = os.open(root, os.O_RDONLY)
    yield Calls.CREATE, lambda: globals().__setitem__("FD", os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    yield Calls.WRITE, lambda: os.write(FD, b"1234")
    yield Calls.WRITE, lambda: os.pwrite(FD, b"5678", 4)
    yield Calls.WRITE, lambda: os.writev(FD, [b"9", b"0"])
    yield Calls.WRITE, lambda: os.pwritev(FD, [b"9", b"0"], 10)
    yield Calls.WRITE, lambda: os.copy_file_range(FD, FD, 2, 0, 100)
    yield Calls.WRITE, lambda: os.sendfile(FD, FD, 0, 2)
    yield Calls.SYNC, lambda: os.fsync(FD)
    yield Calls.SYNC, lambda: os.fdatasync(FD)
    yield Calls.SYNC, lambda: kernel.syncfs(FD)
    yield Calls.TRUNC, lambda: os.ftruncate(FD, 4)
    yield Calls.TRUNC, lambda: os.truncate(file, 3)
    yield Calls.TRUNC, lambda: os.posix_fallocate(FD, 0, 8)
    yield Calls.META, lambda: os.fchmod(FD, 0o640)
    yield Calls.META, lambda: os.chmod("file", 0o600, dir_fd=directory)
    yield Calls.META, lambda: os.fchown(FD, os.getuid(), -1)
    yield Calls.META, lambda: os.chown("file", os.getuid(), -1, dir_fd=directory, follow_symlinks=False)
    yield Calls.META, lambda: os.utime(FD, ns=(0, 0))
    yield Calls.META, lambda: os.utime("file", ns=(0, 0), dir_fd=directory, follow_symlinks=False)
    yield Calls.META, lambda: os.setxattr(FD, "user.a", b"v")
    yield Calls.META, lambda: os.setxattr(file, "user.b", b"v", follow_symlinks=False)
    yield Calls.META, lambda: os.removexattr(FD, "user.a")
    yield Calls.META, lambda: os.removexattr(file, "user.b", follow_symlinks=False)
    yield Calls.NAME, lambda: os.mkdir("directory", dir_fd=directory)
    yield Calls.NAME, lambda: os.mkfifo("fifo", dir_fd=directory)
    yield Calls.NAME, lambda: os.symlink("file", "symlink", dir_fd=directory)
    yield Calls.NAME, lambda: os.link("file", "hard", src_dir_fd=directory, dst_dir_fd=directory)
    yield Calls.NAME, lambda: os.rename(file, other)
    yield Calls.NAME, lambda: kernel.renameat2(directory, "other", directory, "file", kernel.RENAME_NOREPLACE)
    yield Calls.NAME, lambda: os.unlink("hard", dir_fd=directory)
    yield Calls.NAME, lambda: os.rmdir("directory", dir_fd=directory)
    yield Calls.OPEN, lambda: os.close(os.open("file", os.O_RDONLY, dir_fd=directory))
    yield Calls.TRUNC, lambda: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    yield Calls.READ, lambda: os.read(FD, 1)
    yield Calls.READ, lambda: os.pread(FD, 1, 0)
    os.close(directory)


@probe
def classes(shim, root):
    for number, (wanted, call) in enumerate(one_of_each(root)):
        for each in Calls:
            if each in (Calls.DURABLE, Calls.ALL):
                continue
            shim.arm(each, Fault.FAIL_ONCE, 2)   # never met: only counted
        counts = {}
        if wanted is Calls.CREATE:
            shim.arm(Calls.ALL)
            call()
            counts = {wanted: shim.counted}
        else:
            for each in (wanted, Calls.ALL & ~wanted):
                shim.arm(each, Fault.FAIL_ONCE, 1, errno.EDQUOT)
                try:
                    call()
                except OSError as error:
                    counts[each] = (shim.counted, error.errno)
                else:
                    counts[each] = (shim.counted, 0)
                if shim.landed is not None and each is not wanted:
                    yield f"{number}: of another class, too: {shim.landed}"
            shim.arm(Calls.ALL)
        expected = {wanted: 1} if wanted is Calls.CREATE else {
            wanted: (1, errno.EDQUOT), Calls.ALL & ~wanted: (0, 0)}
        if counts != expected:
            yield f"{number} {wanted!r}: {counts}, not {expected}"
    yield f"{number + 1} calls"


def test_every_class_of_call_is_counted_once_and_can_be_made_to_fail(tmp_path):
    (said,) = both(tmp_path, "classes")
    assert said == [f"{len(list(one_of_each(str(tmp_path))))} calls"]


def write_twice(root):
    fd = os.open(f"{root}/f", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    done = os.write(fd, b"a" * 100)
    done += os.write(fd, b"b" * 100)
    os.mkdir(f"{root}/after")
    return done


def meet(shim, root, fault, nth, error=0, calls=Calls.DURABLE, fn=write_twice):
    shim.arm(calls, fault, nth, error)
    status = run_child(lambda: fn(root))
    shim_says = shim.landed
    content = b""
    if os.path.exists(f"{root}/f"):
        with open(f"{root}/f", "rb") as file:
            content = file.read()
        os.unlink(f"{root}/f")
    there = os.path.exists(f"{root}/after")
    if there:
        os.rmdir(f"{root}/after")
    return status, shim_says, content, there


@probe
def faults(shim, root):
    # this process must not meet what is for its children: it looks at the root through another watch
    def child(fault, nth, error=0):
        def act(root):
            shim.watch(root)
            write_twice(root)

        shim.unwatch()
        return meet(shim, root, fault, nth, error, fn=act)

    for fault, nth, length, dies, goes_on in (
        (Fault.KILL, 2, 0, True, False), (Fault.KILL, 3, 100, True, False), (Fault.TEAR, 3, 150, True, False),
        (Fault.TEAR, 4, 200, True, False), (Fault.SHORT, 2, 150, False, True), (Fault.NONE, 0, 200, False, True),
    ):
        status, landed, content, there = child(fault, nth)
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if (len(content), died, there) != (length, dies, goes_on):
            yield f"{fault.name} at {nth}: {len(content)} bytes, died {died}, went on {there}"
        if fault is not Fault.NONE and (landed is None or landed.nth != nth):
            yield f"{fault.name} at {nth} says that it met {landed}"
    for fault, times in ((Fault.FAIL_ONCE, 1), (Fault.FAIL_ON, 3)):
        def act(root, fault=fault):
            shim.watch(root)
            shim.arm(Calls.DURABLE, fault, 1, errno.ENOSPC)
            for _ in range(3):
                try:
                    os.mkdir(f"{root}/after")
                    break
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            else:
                assert times == 3

        shim.unwatch()
        meet(shim, root, Fault.NONE, 0, fn=act)
        shim_says = shim.fired
        if shim_says != times:
            yield f"{fault.name} was met {shim_says} times"
    shim.arm(Calls.DURABLE, Fault.KILL, 99)
    if os.waitstatus_to_exitcode(run_child(lambda: write_twice(root))) != 0 or shim.landed is not None:
        yield "a fault at a call that is never made landed"


def test_each_fault_happens_at_the_very_call_and_the_parent_hears_of_it(tmp_path):
    assert both(tmp_path, "faults") == [[]]


@probe
def order(shim, root):
    log, trace = f"{root}.log", f"{root}.trace"
    shim.record(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    shim.trace(os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    shim.arm(Calls.DURABLE)

    def work(name):
        fd = os.open(f"{root}/{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for number in range(50):
            os.write(fd, b"%d" % (number % 10))
        os.close(fd)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    shim.mark("end")
    shim.record(-1)
    shim.trace(-1)
    recorded, traced = list(read_calls(log)), read_trace(trace)
    if [m.nth for m in traced] != list(range(1, 205)):
        yield "the trace has gaps"
    if [(c.op, c.path) for c in recorded[:-1]] != [(m.op, m.path) for m in traced]:
        yield "the recording and the trace are in different orders"
    for name in "0123":
        data = b"".join(c.data for c in recorded if c.op == "write" and c.path == f"{root}/{name}")
        if data != b"0123456789" * 5 or [c.offset for c in recorded if c.op == "write" and c.path.endswith(name)] != list(range(50)):
            yield f"the writes of {name} are out of order"
    if (recorded[-1].op, recorded[-1].path) != ("mark", "end"):
        yield "the mark is not the last"
    with_failure = shim.counted
    try:
        os.mkdir(f"{root}/0/x")
    except OSError:
        with_failure += 1
    if shim.counted != with_failure:
        yield "a call that fails by itself is not counted"


def test_the_log_has_every_call_in_the_order_in_which_they_happened(tmp_path):
    assert both(tmp_path, "order") == [[]]


@probe
def outside(shim, root):
    shim.arm(Calls.ALL)
    shim.watch(f"{root}/inside")
    os.mkdir(f"{root}/insider")
    with open(f"{root}/insider/f", "w") as file:
        file.write("x")
    os.symlink("/", f"{root}/link")
    yield shim.counted


def test_what_is_not_beneath_the_root_is_not_counted(tmp_path):
    assert both(tmp_path, "outside") == [["0"]]


def test_without_the_shim_there_is_no_rig():
    with pytest.raises(NotPreloadedError):
        Shim()


AUDITED = """
import os, sys
from crash.shim import Calls, Shim
from crash.workloads import Images, build
from layerstore.testing.ledger import Ledger
work = sys.argv[1]
shim = Shim()
workloads = build(Images(work + "/images"))
shim.watch(work + "/store")
shim.arm(Calls.ALL & ~Calls.READ)
ledger = Ledger(lambda line: None)
workloads["everything"].prepare(work + "/store", ledger)
workloads["everything"].run(work + "/store", ledger)
print(shim.counted)
"""


@pytest.mark.root
def test_nothing_that_changes_the_store_escapes_the_shim(tmp_path):
    """strace sees what the kernel was asked for: as many calls beneath the store as the shim counted, and no mapping."""
    log = tmp_path / "strace"
    ran = subprocess.run(
        ["strace", "-f", "-y", "-s", "0", "-e", f"trace={MUTATING},mmap,getcwd", "-o", log,
         "-E", f"LD_PRELOAD={environment()['LD_PRELOAD']}", sys.executable, "-c", AUDITED, str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=600,
    )
    lines = [line for line in log.read_text().splitlines() if beneath(line, f"{tmp_path}/store")]
    assert len(lines) == int(ran.stdout)
    assert len(lines) > 1000, "the workload is large enough to mean something"
    mapped = [line for line in log.read_text().splitlines() if "mmap(" in line and f"<{tmp_path}/store" in line
              and "PROT_WRITE" in line and "MAP_SHARED" in line]
    assert mapped
    assert all("lock.mdb>" in line for line in mapped), "only LMDB's lock file is written through a mapping"


def beneath(line, root):
    """Whether this line of strace is a mutating call or an open of something beneath *root*."""
    call = re.match(r"\d+ +(\w+)\((.*)", line)
    if call is None or call[1] in ("mmap", "getcwd"):
        return False
    name, rest = call.groups()
    if name.startswith("symlink"):
        rest = rest.split(", ", 1)[1]
    if "xattr" in name and rest.startswith('"/proc/self/fd/'):
        return True   # attributes have no *at call; only the store is asked about them in this workload
    if re.match(rf"(AT_FDCWD<[^>]*>, )?\"{re.escape(root)}[/\"]", rest):
        return True
    return re.match(rf"\d+<{re.escape(root)}[/>]", rest) is not None
