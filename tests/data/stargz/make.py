"""Makes the blobs of this directory: ``python make.py PROGRAM``, which is make.go, compiled. Tests read what it made."""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import chunkedmaker  # noqa: E402

CHUNK = 4096


def content(name, size):
    return hashlib.shake_256(name.encode()).digest(size)


def members(version):
    big = bytearray(content("big", 24_000))
    if version == 2:
        big[9_000:9_010] = bytes(10)
    yield from chunkedmaker.tree(bytes(big))
    for number in range(8):
        yield chunkedmaker.member(f"d/file{number}", content(f"{number} {version if number == 3 else 1}", 1500))


def main(program):
    told = {}
    for version in (1, 2):
        tar = b"".join(header + data + bytes(-len(data) % 512) for header, data, _ in members(version)) + bytes(1024)
        with tempfile.NamedTemporaryFile() as file:
            file.write(tar)
            file.flush()
            for form in ("estargz", "zstdchunked"):
                name = f"{form}-{version}"
                ran = subprocess.run([program, file.name, HERE / f"{name}.blob", str(CHUNK), form], check=True, capture_output=True)
                told[name] = json.loads(ran.stdout)
    (HERE / "told.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
