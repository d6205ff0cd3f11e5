"""The tar writers and readers of the field, called as programs or by Python's library: oracles for differential tests.

A writer gives None if the tree does not fit its format. Nothing of layerstore is used here.
"""

import decimal
import io
import os
import stat
import subprocess
import tarfile
import urllib.parse

ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
GNU = ("v7", "ustar", "gnu", "oldgnu", "posix 0.0", "posix 0.1", "posix 1.0")
BSD = ("pax", "gnutar", "ustar")
TARFILE = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
WRITERS = [*(("gnu", f) for f in GNU), *(("bsd", f) for f in BSD), *(("tarfile", f) for f in TARFILE)]


def write(writer, form, tree):
    """*tree* (a directory) as a tar, ``./`` first."""
    return {"gnu": _gnu, "bsd": _bsd, "tarfile": _tarfile}[writer](form, os.fspath(tree))


def _gnu(form, tree):
    form, _, sparse = form.partition(" ")
    options = ["--numeric-owner", f"--format={form}"]
    if sparse:
        options += [f"--sparse-version={sparse}", "--sparse", "--xattrs", "--xattrs-include=*"]
    elif form != "v7":
        options += ["--sparse"] if form in ("gnu", "oldgnu") else []
    return _run(["tar", *options, "-C", tree, "-cf", "-", "."])


def _bsd(form, tree):
    options = ["--xattrs"] if form == "pax" else ["--no-xattrs"]
    return _run(["bsdtar", f"--format={form}", *options, "--no-acls", "--no-fflags", "--numeric-owner", "-C", tree, "-cf", "-", "."])


def _run(command):
    ran = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
    # libarchive leaves out what does not fit, says so, and calls it a success
    return ran.stdout if ran.returncode == 0 and not (command[0] == "bsdtar" and ran.stderr) else None


def _tarfile(form, tree):
    out = io.BytesIO()
    try:
        with tarfile.open(fileobj=out, mode="w", format=TARFILE[form], encoding="utf-8", errors="surrogateescape") as archive:
            archive.add(tree, arcname=".", filter=lambda info: _with_xattrs(info, tree) if form == "pax" else info)
    except (ValueError, OverflowError):
        return None
    return out.getvalue()


def _with_xattrs(info, tree):
    if 0 < abs(info.mtime) < 1e-4:
        raise ValueError("it writes 1e-05, which is no number of PAX's, and which GNU tar and Go do not read")
    path = os.path.join(tree, info.name)
    if info.isreg() or info.isdir():
        for name in os.listxattr(path):
            if not name.startswith(("security.", "system.")):
                value = os.getxattr(path, name)
                if _is_text(value):
                    info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode()
    return info


def _is_text(value):
    """What ``pax_headers`` can hold."""
    return b"\0" not in value and value.decode("utf-8", "replace").encode() == value


def extract_gnu(data, dest):
    """As root would: owners, times, attributes."""
    return _extract(["tar", "-P", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*", "--numeric-owner",
                     "--delay-directory-restore", "-C", dest, "-xpf", "-"], data)


def extract_bsd(data, dest):
    return _extract(["bsdtar", "-P", "--numeric-owner", "--same-owner", "-C", dest, "-xpf", "-"], data)


def extract_tarfile(data, dest):
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=1, encoding="utf-8", errors="surrogateescape") as archive:
            archive.extraction_filter = lambda member, _dest: member   # also where extractall knows no filters yet
            archive.extractall(dest, numeric_owner=True)
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        return False, repr(error)
    return True, ""


def _extract(command, data):
    ran = subprocess.run(command, input=data, capture_output=True, env=ENVIRONMENT)
    return ran.returncode == 0, ran.stderr.decode(errors="replace")


READERS = {"gnu": extract_gnu, "bsd": extract_bsd, "tarfile": extract_tarfile}


def as_written(writer, form, snapshot):
    """A tree's snapshot (``treediff``), less what the format cannot say of it or the writer gets wrong."""
    for entry in snapshot.values():
        entry["mtime_ns"] = _TIMES.get((writer, form), _floor)(entry["mtime_ns"])
        if writer == "tarfile" and not stat.S_ISREG(entry["type"]):
            entry["link_group"] = None   # it knows hard links of regular files only
        if (writer, form) == ("bsd", "pax"):
            entry["xattrs"] = _bsd_xattrs(entry["xattrs"])
        elif (writer, form) == ("tarfile", "pax"):
            entry["xattrs"] = {name: value for name, value in entry["xattrs"].items() if _is_text(value)}
        elif form not in ("posix 0.0", "posix 0.1", "posix 1.0", "pax"):
            entry["xattrs"] = {}
    return snapshot


def _floor(ns):
    return ns // 10**9 * 10**9


def _exact(ns):
    return ns


def _float(ns):
    """Python's stat gives seconds as a float, and that is what it writes."""
    return int(decimal.Decimal(repr(ns // 10**9 + 1e-9 * (ns % 10**9))).scaleb(9).to_integral_value(decimal.ROUND_FLOOR))


def _truncated(ns):
    return int(ns // 10**9 + 1e-9 * (ns % 10**9)) * 10**9


def _bsd_pax(ns):
    seconds, nanos = divmod(ns, 10**9)
    return ns if seconds >= 0 else seconds * 10**9 - nanos   # half a second before 1970 is written as -1.5


def _bsd_octal(ns):
    return max(0, min(_floor(ns), ((1 << 33) - 1) * 10**9))


def _bsd_xattrs(xattrs):
    """Once under their encoded names as star's, and once as libarchive's own, where an empty value means none."""
    encoded = {urllib.parse.quote(name, safe="!\"#$&'()*+,-./:;<>?@[\\]^_`{|}~"): value for name, value in xattrs.items()}
    return {**encoded, **{name: value for name, value in xattrs.items() if value}}


_TIMES = {
    **{("gnu", f"posix {n}"): _exact for n in ("0.0", "0.1", "1.0")}, ("bsd", "pax"): _bsd_pax, ("bsd", "gnutar"): _bsd_octal,
    ("bsd", "ustar"): _bsd_octal, ("tarfile", "pax"): _float, ("tarfile", "gnu"): _truncated, ("tarfile", "ustar"): _truncated,
}
