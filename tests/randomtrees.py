"""Random trees for property tests: a strategy of descriptions, and a function that makes one on disk.

What a tree may hold is drawn first, so that many trees fit the old formats.
"""

import os
import stat

from hypothesis import strategies as st

PLAIN = [b"a", b"b", b"bin", b"file.txt", b"-dash", b"with space", b"UPPER", b"upper"]
ODD = ["ünï-名前".encode(), b"new\nline", b"\xff\xfe\x80", b"tab\tquote\"'", b"back\\slash", b"*?[", b"\x1b[31mred", b"e\xcc\x81", b"\xc3\xa9"]
LONG = [b"n" * 99, b"n" * 100, b"n" * 101, b"m" * 155, b"x" * 255]
DEEP = b"/".join([b"down"] * 60)
FEATURES = ("odd", "long", "xattrs", "sparse", "ids", "times", "devices", "capabilities", "deep")
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")   # cap_net_bind_service+ep (linux/capability.h)

SECONDS = st.sampled_from([0, 1, 1_700_000_000, 2_000_000_000])
NANOS = st.one_of(
    st.sampled_from([0, -1, -1_500_000_000, 1, 999_999_999, 1_234_567_890_123_456_789, (1 << 31) * 10**9, -(1 << 31) * 10**9 + 1,
                     (1 << 33) * 10**9 + 7]),
    st.integers(-(1 << 31) * 10**9, (1 << 33) * 10**9),
)
MODES = st.sampled_from([0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0o000, 0o444])
IDS = st.sampled_from([0, 1, 1000, 262_143])
HUGE_IDS = st.sampled_from([2_097_152, 65_534, 1 << 31, 4_294_967_294])
SIZES = st.sampled_from([0, 1, 511, 512, 513, 10_240, 70_001])
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.ünï", "user.with space", "user.new\nline"]),
    st.sampled_from([b"", b"plain", b"two\nlines", b"\0binary\xff", b"x" * 600]), max_size=2,
)


@st.composite
def trees(draw, privileged):
    """A list of (path, kind, details), parents before children."""
    features = draw(st.sets(st.sampled_from(FEATURES), max_size=3))
    names = st.sampled_from(PLAIN + (ODD if "odd" in features else []) + (LONG if "long" in features else []))
    directories, made = [b""], {}
    if "deep" in features:
        directories.append(DEEP)
    for _ in range(draw(st.integers(1, 12))):
        path = draw(st.sampled_from(directories))
        path = path + b"/" + draw(names) if path else draw(names)
        if path in made or len(path) > 900:
            continue
        kinds = ["file", "file", "dir", "dir", "symlink", "hardlink", "fifo"]
        kinds += ["sparse"] if "sparse" in features else []
        kinds += ["char", "block"] if "devices" in features and privileged else []
        kind = draw(st.sampled_from(kinds))
        files = [p for p, e in made.items() if e["kind"] in ("file", "sparse", "symlink")]
        if kind == "hardlink" and not files:
            kind = "file"
        made[path] = {
            "kind": kind, "mode": draw(MODES), "size": draw(SIZES),
            "owner": draw(st.tuples(*[HUGE_IDS if "ids" in features else IDS] * 2)) if privileged else None,
            "mtime_ns": draw(NANOS) if "times" in features else draw(SECONDS) * 10**9,
            "xattrs": {**(draw(XATTRS) if "xattrs" in features else {}),
                       **({"security.capability": CAPABILITY} if privileged and kind in ("file", "sparse") and "capabilities" in features else {})},
            "to": draw(st.sampled_from(files)) if kind == "hardlink" else draw(st.sampled_from([b"a", b"/etc/passwd", b"../..", b"n" * 101])),
            "segments": draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9_000)), max_size=4)),
        }
        if kind == "symlink" and len(made[path]["to"]) > 100 and "long" not in features:
            made[path]["to"] = b"b"
        if kind == "dir":
            directories.append(path)
    return made


def build(made, top):
    """Make the tree in the empty directory *top*."""
    top = os.fsencode(top)
    if any(path.startswith(DEEP) for path in made):
        os.makedirs(os.path.join(top, DEEP))
    for path, each in made.items():
        _make(os.path.join(top, path), each, top)
    for path in sorted(made, reverse=True):   # directories after what they hold
        if made[path]["kind"] != "hardlink":
            _dress(os.path.join(top, path), made[path])
    os.chmod(top, 0o755)
    way = os.path.join(top, DEEP) if os.path.lexists(os.path.join(top, DEEP)) else top
    while True:
        os.utime(way, ns=(10**18, 10**18))
        if way == top:
            break
        way = os.path.dirname(way)


def _make(full, each, top):
    kind = each["kind"]
    if kind == "dir":
        os.mkdir(full)
    elif kind == "symlink":
        os.symlink(each["to"], full)
    elif kind == "hardlink":
        os.link(os.path.join(top, each["to"]), full, follow_symlinks=False)
    elif kind == "fifo":
        os.mkfifo(full)
    elif kind in ("char", "block"):
        os.mknod(full, 0o600 | (stat.S_IFCHR if kind == "char" else stat.S_IFBLK), os.makedev(7, 259))
    else:
        with open(full, "wb") as file:
            if kind == "file":
                file.write((full[-7:] * each["size"])[: each["size"]])
            else:
                for at, length in each["segments"]:
                    file.seek(at * 64 << 10)
                    file.write(b"s" * length)
                file.truncate(45 * 64 << 10)


def _dress(full, each):
    link = each["kind"] == "symlink"
    if each["owner"] is not None:
        os.chown(full, *each["owner"], follow_symlinks=False)
    if each["kind"] in ("file", "dir", "sparse"):
        for name, value in each["xattrs"].items():
            os.setxattr(full, name, value)
    if not link:
        os.chmod(full, each["mode"])
    os.utime(full, ns=(each["mtime_ns"], each["mtime_ns"]), follow_symlinks=False)
