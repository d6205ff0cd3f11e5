"""What is published: wheel and sdist are whole, install where no checkout is, work there, and are typed for their users.

One build, and a virtual environment for each supported Python that the machine has: the running one always.
"""

import email
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORTED = ("3.11", "3.12", "3.13")
TOOLS = [each for each in PROJECT["optional-dependencies"]["test"] if each.startswith(("pytest", "hypothesis"))]
QUICK = ["journal/tests/test_journal_basics.py", "tests/test_tar_plain.py", "tests/test_golden_store.py", "tests/test_pull.py"]

PROGRAM = '''
import os, sys
import layerstore
from layerstore.testing import CrashExplorer, layer
import layerjournal

assert layerstore.__file__.startswith(sys.prefix) and layerjournal.__file__.startswith(sys.prefix), layerstore.__file__
work = sys.argv[1]
os.makedirs(f"{work}/tree/etc")
with open(f"{work}/tree/etc/os-release", "w") as file:
    file.write("ID=test")


def put(store, told=None):
    with store.stage(layerstore.DirectoryDiffer(f"{work}/tree")) as staged:
        layer_id = layerstore.default_layer_id(None, staged.output.diff_id)
        if told is None:
            return store.apply_staged_layer(staged, names=["app"])
        with told.asking(layer(layer_id, staged.output.diff_id)):
            return store.apply_staged_layer(staged)


with layerstore.open(f"{work}/store") as store:
    made = put(store)
    store.extract("app", f"{work}/out")
    assert store.check(content=True).sound


def run(root, ledger):
    with layerstore.open(root) as opened:
        put(opened, ledger)


os.mkdir(f"{work}/crashes")
explorer = CrashExplorer(f"{work}/crashes", lambda root, ledger: layerstore.open(root).close(), run)
states = list(explorer.explore((0.15,)))
assert not [each for each in states if each.violations], states
print(made.diff_id, open(f"{work}/out/etc/os-release").read(), len(states))
'''

USER = '''
import layerstore
from layerjournal import Record


def verify(image: layerstore.OfferedImage) -> bytes:
    return b"".join(blob for each in image.signatures for blob in each.blobs)


def top(root: str, record: Record) -> str | None:
    with layerstore.open(root, readonly=True) as store:
        found = store.layers()
        wrong: int = found[0].diff_id  # type: ignore[assignment]
        store.mount(17, "/mnt")  # type: ignore[arg-type]
        store.pull("oci:x", options=layerstore.PullOptions(verify=verify))
        layerstore.PullOptions(verify=len)  # type: ignore[arg-type]
        return found[0].parent if wrong else record.entity
'''


def interpreters():
    """The supported Pythons of this machine, by version: those on PATH and those that version managers keep."""
    found = {"{}.{}".format(*sys.version_info): sys.executable}
    for version in SUPPORTED:
        kept = sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python{version}")))
        for path in (shutil.which(f"python{version}"), *kept):
            if path and version not in found and _works(path):
                found[version] = path
    return found


def _works(path):
    return subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0


PYTHONS = interpreters()


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist; the wheel is made from the sdist, so what the sdist lacks the wheel has not."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A function: the environment of a Python with the wheel in it and nothing of the checkout; made once."""
    made = {}

    def environment(version):
        if version not in made:
            made[version] = tmp_path_factory.mktemp(f"venv{version}")
            run(PYTHONS[version], "-m", "venv", "--without-pip", made[version])
            run(sys.executable, "-m", "pip", "--python", made[version] / "bin" / "python", "install", "--quiet", built[0])
        return made[version]

    return environment


def elsewhere(directory):
    """How to start a program there: no checkout on the path."""
    return {"cwd": directory, "env": {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}}


def test_the_wheel_has_every_module_of_both_packages_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    modules = {str(path.relative_to(base)) for base in (ROOT / "src", ROOT / "journal")
               for package in ("layerstore", "layerjournal") for path in (base / package).rglob("*")
               if path.suffix == ".py" or path.name == "py.typed"}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == modules | {name for name in names if name.startswith("layerstore-") and ".data/" in name}
    assert any(name.endswith("licenses/LICENSE") for name in info)


def test_the_metadata_says_what_the_project_says(built):
    wheel = zipfile.ZipFile(built[0])
    (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
    told = email.message_from_bytes(wheel.read(name))
    assert (told["Name"], told["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (told["Requires-Python"], told["License-Expression"]) == (">=3.11", "Apache-2.0")
    versions = {each.rpartition(" ")[2] for each in told.get_all("Classifier") if "Python :: 3." in each}
    assert versions == set(SUPPORTED)
    assert set(told.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_version_of_the_code_is_that_of_the_metadata():
    import layerstore

    assert layerstore.__version__ == PROJECT["version"]


def test_the_sdist_has_what_the_tests_need(built):
    with tarfile.open(built[1]) as archive:
        tops = {name.partition("/")[2].partition("/")[0] for name in archive.getnames()}
    tracked = {name.partition("/")[0] for name in run("git", "-C", ROOT, "ls-files").split()} if (ROOT / ".git").exists() else tops
    assert tracked - {".ci"} <= tops


@pytest.mark.parametrize("version", sorted(PYTHONS))
def test_a_program_works_where_only_the_wheel_is(installed, version, tmp_path):
    environment = installed(version)
    diff_id, content, states = run(environment / "bin" / "python", "-c", PROGRAM, tmp_path, **elsewhere(tmp_path)).split()
    assert diff_id.startswith("sha256:")
    assert content == "ID=test"
    assert int(states) >= 5


@pytest.mark.parametrize("version", sorted(PYTHONS))
def test_tests_of_the_sdist_pass_with_the_wheel(built, installed, version, tmp_path):
    """Of each layer of the code some that are quick; layerstore and layerjournal are the installed ones, for there are no others."""
    python = installed(version) / "bin" / "python"
    tools = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("PYTEST_")}
    if version == "{}.{}".format(*sys.version_info):
        tools["PYTHONPATH"] = sysconfig.get_path("purelib")   # pytest is there already
    else:
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *TOOLS)
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("layerstore-*")
    shutil.rmtree(unpacked / "src")
    shutil.rmtree(unpacked / "journal" / "layerjournal")
    told = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK, cwd=unpacked, env=tools)
    assert int(re.search(r"(\d+) passed", told)[1]) >= 100, told


def test_the_command_says_what_to_install_where_its_extra_is_not(installed, tmp_path):
    environment = installed(min(PYTHONS))
    done = subprocess.run([environment / "bin" / "layerstore"], capture_output=True, text=True, check=False,
                          **elsewhere(tmp_path))
    assert done.returncode == 1
    assert "pip install 'layerstore[cli]'" in done.stderr


def test_types_are_seen_from_a_users_side(installed, tmp_path):
    """Strict, so an ``ignore`` that nothing needs is an error: the wrong uses are seen to be wrong."""
    environment = installed("{}.{}".format(*sys.version_info))
    (tmp_path / "user.py").write_text(USER)
    run(sys.executable, "-m", "mypy", "--strict", "--python-executable", environment / "bin" / "python",
        "--cache-dir", tmp_path / "cache", "user.py", **elsewhere(tmp_path))
