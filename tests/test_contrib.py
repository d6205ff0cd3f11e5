"""What comes with the command line: completion in the shell, man pages, systemd units. They go by the commands as they are."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

import layerstore
from layerstore.cli.commands import cli
from storekit import add

ROOT = Path(__file__).parent.parent
MAN = ROOT / "contrib" / "man"
UNITS = sorted((ROOT / "contrib" / "systemd").iterdir())


def commands(group=cli, path=("layerstore",)):
    """Every command with the words that lead to it."""
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            yield from commands(group.get_command(context, name), (*path, name))


COMMANDS = dict(commands())


def completed(*words):
    found = ShellComplete(cli, {}, "layerstore", "_LAYERSTORE_COMPLETE").get_completions([*map(str, words[:-1])], words[-1])
    return sorted(item.value for item in found)


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.fixture
def named(root):
    with layerstore.open(root) as store:
        return add(store, names=["debian:12", "debian:13", "alpine"])


def test_commands_and_options_are_completed(root):
    assert completed("ch") == ["check"]
    assert completed("check", "--c") == ["--content"]


# what takes an image or layer, and how far the line goes before it
TAKE_REFERENCES = {
    **{name: () for name in ("show", "mount", "extract", "rm", "export", "explain", "push", "tag", "untag")},
    "apply": ("x.tar", "--parent"), "commit": ("/mnt", "--base"),
}


@pytest.mark.parametrize("command", TAKE_REFERENCES)
def test_names_of_the_store_on_the_line_are_completed(root, named, command):
    assert completed("--root", root, command, *TAKE_REFERENCES[command], "deb") == ["debian:12", "debian:13"]


def test_no_command_that_takes_an_image_or_layer_is_left_without_completion():
    """By what their help calls it: ID, IMAGE, LAYER."""
    take = {path[1] for path, command in COMMANDS.items() if len(path) == 2 for each in command.params
            if (each.metavar or each.name).upper() in ("ID", "IMAGE", "LAYER") and not each.multiple}
    assert {"show", "push", "apply", "commit", "export"} <= take <= set(TAKE_REFERENCES)


def test_ids_are_completed_when_there_is_a_beginning_of_one(root, named):
    assert completed("--root", root, "show", named.id[:2]) == [named.id]
    assert completed("--root", root, "show", "") == ["alpine", "debian:12", "debian:13"]


def test_the_store_of_the_environment_is_looked_into(root, named, monkeypatch):
    monkeypatch.setenv("LAYERSTORE_ROOT", str(root))
    assert completed("show", "al") == ["alpine"]


def test_where_there_is_no_store_nothing_is_completed_and_none_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("LAYERSTORE_ROOT", raising=False)
    assert completed("show", "a") == []
    assert completed("--root", tmp_path / "none", "show", "a") == []
    assert list(tmp_path.iterdir()) == []


def test_bash_completes_with_the_script_that_is_printed(tmp_path):
    (tmp_path / "layerstore").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m layerstore "$@"\n')
    (tmp_path / "layerstore").chmod(0o755)
    script = ('eval "$(layerstore completion bash)"; COMP_WORDS=(layerstore journal ver); COMP_CWORD=2; '
              '_layerstore_completion layerstore; echo "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.stdout == "verify\n", done.stderr


@pytest.mark.parametrize(("shell", "says"), [("zsh", "#compdef layerstore"), ("fish", "complete --no-files --command layerstore")])
def test_the_other_shells_get_a_script_of_theirs(shell, says):
    done = subprocess.run([sys.executable, "-m", "layerstore", "completion", shell], capture_output=True, text=True, check=True)
    assert says in done.stdout


# -- man pages ---------------------------------------------------------------------------------------------------------


def test_there_is_a_man_page_for_every_command_and_no_other():
    assert {path.name for path in MAN.iterdir()} == {f"{'-'.join(each)}.1" for each in COMMANDS}, "run: make man"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_man_page_says_what_the_command_says(path):
    """Word by word, whatever the generator makes of lines."""
    page = (MAN / f"{'-'.join(path)}.1").read_text()
    command = COMMANDS[path]
    flags = {flag for each in command.params if isinstance(each, click.Option) for flag in (*each.opts, *each.secondary_opts)}
    shown = re.findall(r"(?m)^\\fB(.*)$", page.partition(".SH OPTIONS")[2].partition(".SH COMMANDS")[0])
    assert set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", " ".join(shown).replace("\\-", "-"))) == flags, "run: make man"
    said = " ".join(page.split())
    for each in (command.help, *(option.help for option in command.params if isinstance(option, click.Option))):
        for line in (each or "").replace("\b", "").splitlines():
            assert " ".join(line.split()) in said, "run: make man"


def test_man_pages_are_made_anew_by_the_tool(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "manpages.py", tmp_path], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in MAN.iterdir()}
    assert ".nf\nbash:" in (tmp_path / "layerstore-completion.1").read_text()


# -- systemd units -----------------------------------------------------------------------------------------------------


def unit(path):
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_there_is(path):
    program, *arguments = shlex.split(unit(path)["Service"]["ExecStart"])
    assert (program, arguments[:2]) == ("layerstore", ["--root", "%f"])
    command = COMMANDS[program, arguments[2]]
    command.make_context(arguments[2], arguments[3:]).close()   # raises for what it does not know
    assert unit(path)["Service"]["ReadWritePaths"] == "%f"
    assert (path.with_suffix(".timer")).exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path):
    """As instances for one store; the program and its man pages are put where systemd looks for them."""
    (tmp_path / "man").mkdir()
    (tmp_path / "man" / "man1").symlink_to(MAN)
    units = []
    for path in UNITS:
        text = path.read_text().replace("ExecStart=layerstore", "ExecStart=/bin/true")
        units.append(tmp_path / path.name.replace("@", "@srv-layers"))
        units[-1].write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False,
                          env={**os.environ, "MANPATH": str(tmp_path / "man")})
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert len(units) == 6
