"""What the one module that touches the disk makes of the kernel's answers."""

import os

from layerstore.system import fs


def test_a_write_that_the_kernel_cuts_short_is_gone_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    with fs.open_dir(str(tmp_path)) as directory:
        fs.write_new(directory, "file", b"ten bytes!", point="stage.txid")
    assert (tmp_path / "file").read_bytes() == b"ten bytes!"
