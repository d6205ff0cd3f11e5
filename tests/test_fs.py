"""What the modules that touch the disk make of the kernel's answers."""

import os

from layerstore.system import fs, removing


def test_a_write_that_the_kernel_cuts_short_is_gone_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    with fs.open_dir(str(tmp_path)) as directory:
        fs.write_new(directory, "file", b"ten bytes!", point="stage.txid")
    assert (tmp_path / "file").read_bytes() == b"ten bytes!"


def test_of_a_large_directory_few_names_are_held_while_it_is_removed(tmp_path, monkeypatch):
    for each in range(9):
        (tmp_path / "top" / f"d{each}").mkdir(parents=True)
        for one in range(9):
            (tmp_path / "top" / f"d{each}" / f"f{one}").touch()
    real, ahead, read = os.scandir, [0], [0]

    def counted(fd):
        class Counted:
            def __init__(self):
                self.entries = real(fd)
                self.close = self.entries.close

            def __enter__(self):
                return self

            def __exit__(self, *_exc):
                self.close()

            def __iter__(self):
                return self

            def __next__(self):
                entry = next(self.entries)
                read[0] += 1
                return entry

        return Counted()

    def removed(_weight):
        ahead.append(read[0])
        read[0] -= 1

    monkeypatch.setattr(removing, "_LISTED", 4)
    monkeypatch.setattr(removing.os, "scandir", counted)
    with fs.open_dir(str(tmp_path)) as top:
        before = len(os.listdir("/proc/self/fd"))
        removing.remove_tree(top, "top", point="test.remove", pause=removed)
        assert len(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "top").exists()
    assert max(ahead) <= 4 + 4   # at each of two levels
