"""Runs the real podman on a view, so that it neither needs nor leaves anything of the machine's.

Store, runtime state and configuration are in a directory of the test's; locks are files. A script of commands runs in a mount
namespace of its own, with a private cgroup2 where the machine's is hybrid, which crun refuses, and in a pid namespace, with which
ends what podman leaves running to clean up; containers get no cgroup, no network and no new limits. Needs root.
"""

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from namespaces import GROUP, SUBID_COUNT, SUBIDS, USER

STORAGE = """
[storage]
driver = "overlay"
graphroot = "{home}/graph"
rootless_storage_path = "{home}/graph"
runroot = "{state}/run"
[storage.options]
additionalimagestores = ["{view}"]
"""
CONTAINERS = """
[containers]
default_ulimits = ["nofile=256:256", "nproc=256:256"]
keyring = false
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
tmp_dir = "{state}/tmp"
"""
SETUP = """
set -e
mount --make-rprivate /
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R /sys/fs/cgroup || true
    mount -t cgroup2 none /sys/fs/cgroup || true
fi
"""
RUN = "podman run --rm --network=none --cgroups=disabled --pull=never"
CREATE = "podman create --network=none --cgroups=disabled --pull=never"


class Podman:
    """Containers are kept in *home*, which is made. *rootless*: as the ordinary user, with subordinate ids of the namespace's.

    Close it. What podman keeps of its state is elsewhere: it waits for ever where the paths of sockets are long.
    """

    def __init__(self, home, view, *, rootless=False):
        self.home, self.view, self.rootless = Path(home), view, rootless
        self.state = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="ls-"))
        for path in (self.home, self.home / "graph", self.state / "run", self.state / "tmp", self.state / "xdg"):
            path.mkdir()
        (self.home / "storage.conf").write_text(STORAGE.format(home=home, view=view, state=self.state))
        (self.home / "containers.conf").write_text(CONTAINERS.format(state=self.state))
        if rootless:
            subprocess.run(["chown", "-R", f"{USER}:{GROUP}", self.home, self.state], check=True)

    def close(self):
        shutil.rmtree(self.home)
        shutil.rmtree(self.state)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()

    def script(self, text, *, readonly=False, user_text=""):
        """What the commands of *text* print. *readonly*: the view is a read-only bind mount for them."""
        setup = SETUP
        if readonly:
            where = shlex.quote(str(self.view))
            setup += f"mount --bind {where} {where}\nmount -o remount,bind,ro {where}\n"
        inner = ["sh", "-ec", text]
        if self.rootless:
            (self.home / "subids").write_text(f"{_name()}:{SUBIDS}:{SUBID_COUNT}\n")
            for kind in ("uid", "gid"):
                setup += f"mount --bind {self.home}/subids /etc/sub{kind}\n"
            inner = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", *inner]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home),
            "CONTAINERS_STORAGE_CONF": f"{self.home}/storage.conf", "CONTAINERS_CONF": f"{self.home}/containers.conf",
            "XDG_RUNTIME_DIR": f"{self.state}/xdg", "TMPDIR": f"{self.home}", "LC_ALL": "C",
        }
        try:
            done = subprocess.run(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", f'{setup}\nexec "$@"', "sh", *inner],
                env=environment, capture_output=True, text=True, cwd=self.home, timeout=120,
            )
        finally:
            self._forget_pause()
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _forget_pause(self):
        """A rootless podman leaves a process that holds its namespaces, and where it is; it ended with the script's own."""
        for file in self.state.rglob("pause.pid"):
            file.unlink()


def _name():
    return pwd.getpwuid(USER).pw_name


PROGRAM = r"""
#include <stdio.h>
#include <sys/stat.h>
int main(void) {
    char line[80];
    struct stat status;
    FILE *file = fopen("/etc/motd", "r");
    if (file && fgets(line, sizeof line, file)) fputs(line, stdout);
    printf("gone: %d, hidden: %d\n", stat("/gone", &status) != 0, stat("/opaque/old", &status) != 0);
    if (!stat("/owned", &status)) printf("owner: %d:%d\n", (int) status.st_uid, (int) status.st_gid);
    return 0;
}
"""
SAYS = "from the upper layer\ngone: 1, hidden: 1\nowner: 33:34\n"


def program(directory):
    """A program that needs no library; what a container runs."""
    source, made = Path(directory, "says.c"), Path(directory, "says")
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-O1", "-s", "-o", made, source], check=True)
    return made.read_bytes()


def says_image(directory, says, *, name="image", motd="from the upper layer\n", compression="gzip"):
    """An image whose program prints ``SAYS``, if whiteouts and opaque directories are what they should be."""
    import imagemaker as im

    base = {"bin": im.Dir(), "bin/says": im.File(data=says, mode=0o755), "gone": b"x", "opaque": im.Dir(),
            "opaque/old": b"1", "owned": im.File(uid=33, gid=34), "etc": im.Dir(), "etc/motd": b"from the base layer\n"}
    upper = {"gone": im.Whiteout(), "opaque": im.Opaque(), "opaque/new": b"2", "etc/motd": motd.encode()}
    image = im.Image([im.Layer(base, compression=compression), im.Layer(upper, compression=compression)],
                     config={"config": {"Cmd": ["/bin/says"]}})
    return image.write_oci(Path(directory, name), tag="latest")


__all__ = ["CREATE", "RUN", "SAYS", "Podman", "program", "says_image"]
