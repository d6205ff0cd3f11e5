"""The documents say what is so."""

import pathlib
import re
import tempfile

import parcels
from parcels import mark, pack

HERE = pathlib.Path(__file__).parent.parent


def test_the_example_in_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "bytes, the same" in capsys.readouterr().out


def test_the_readme_names_every_fault_point(path, tmp_path):
    text, passed = (HERE / "README.md").read_text(), []
    with parcels.create(path, hook=parcels.recorder(passed)) as journal:
        for name in "ab":
            (path / "segments" / ".new").write_bytes(b"stray")
            pack(journal, name)
            mark(journal)
            journal.archive()
        journal.drop_segments(keep=1)
        journal.copy_to(tmp_path / "copy")
    points = {name for name, _ in passed}
    assert len(points) > 15
    listed = set()
    family = ""
    for name in re.findall(r"`([a-z.<>]+)`", text[text.index("Crash-test your own"):]):
        family = name.rsplit(".", 1)[0] if not name.startswith(".") else family
        family = {"journal.create": "journal.create", "archive": "archive", "copy": "copy"}.get(family, family)
        listed.add(name if not name.startswith(".") else family + name)
    missing = {p for p in points if p not in listed and not p.startswith("txn.")}
    assert not missing, missing


def test_format_md_shows_the_constants_of_the_code():
    from layerjournal import codec, record, segment, views
    text = (HERE / "FORMAT.md").read_text()
    assert segment.MAGIC.hex(" ").upper() in text
    assert codec.MAX_BYTES == 16 << 20 and "at most 16 MiB" in text
    assert record.MAX_RECORD_BYTES == 12 << 20 and "at most 12 MiB" in text
    assert f"deeper than {codec.MAX_DEPTH} levels" in text
    assert f"checksum ({views.CHECKSUM_BYTES})" in text
    assert f"1 to {views.MAX_KEY_BYTES} bytes" in text
