"""Registries for tests, all on loopback: Debian's docker-registry, and one of our own that can misbehave in every way.

::

    with Registry(tmp_path) as registry:                 # the real one; htpasswd=True, tls=Authority(tmp_path)
        push(registry, "some/repository", "tag", made)   # by hand; skopeo does it as well
    with Fake(made) as fake:
        fake.hook = lambda request: request.answer(503) or True    # instead of the proper answer
        fake.requests                                    # (method, path, headers) of all that came
"""

import base64
import http.server
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

from layerstore import RegistryOptions

USER, PASSWORD = "user", "open sesame"
_HTPASSWD = "user:$2b$04$Q.yL3Ah7/aW.yVF44EcoSOWKrbziv87sOQSFJxIUUd.NCvXA7ybN2\n"   # of the two, for these tests
PROGRAM = shutil.which("docker-registry")


def quick(**changes):
    """Options for tests: no pauses; and no try is given up because the machine is busy."""
    return RegistryOptions(**{"plain_http": True, "retries": 2, "backoff": 0.0, "longest_wait": 0.01, "idle_timeout": 300.0,
                              "connect_timeout": 300.0, **changes})


class Authority:
    """A certificate authority, and a certificate of it for 127.0.0.1, made by openssl."""

    def __init__(self, directory):
        directory.mkdir(exist_ok=True)
        self.ca, self.key, self.cert = (str(directory / name) for name in ("ca.pem", "key.pem", "cert.pem"))
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        self._run(*make, "-keyout", str(directory / "ca.key"), "-out", self.ca, "-subj", "/CN=test authority",
                  "-addext", "keyUsage=critical,keyCertSign,cRLSign")   # Python asks for it from 3.13 on
        self._run(*make, "-CA", self.ca, "-CAkey", str(directory / "ca.key"), "-keyout", self.key, "-out", self.cert,
                  "-subj", "/CN=test registry", "-addext", "subjectAltName=IP:127.0.0.1,DNS:registry.test",
                  "-addext", "basicConstraints=critical,CA:FALSE")

    def _run(self, *command):
        subprocess.run(command, check=True, capture_output=True)

    def context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


class Registry:
    """Debian's docker-registry, with storage of its own."""

    def __init__(self, directory, *, htpasswd=False, tls=None, token=None):
        self._directory, self.tls = directory / "registry", tls
        self._directory.mkdir()
        self._auth = {}
        if htpasswd:
            (self._directory / "htpasswd").write_text(_HTPASSWD)
            self._auth = {"htpasswd": {"realm": "test", "path": str(self._directory / "htpasswd")}}
        elif token:
            self._auth = {"token": token}
        self.host = self.log = ""

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://{self.host}"

    def __enter__(self):
        http = {"addr": "127.0.0.1:0", "secret": "for tests"}   # a free port, of which its log tells: none can be taken meanwhile
        if self.tls:
            http["tls"] = {"certificate": self.tls.cert, "key": self.tls.key}
        config = {"version": 0.1, "log": {"level": "info", "accesslog": {"disabled": True}}, "http": http,
                  "storage": {"filesystem": {"rootdirectory": str(self._directory / "data")}}}
        if self._auth:
            config["auth"] = self._auth
        path, log = self._directory / "config.yml", self._directory / "log"
        path.write_text(json.dumps(config))   # JSON is YAML
        with open(log, "wb") as file:
            self._process = subprocess.Popen([PROGRAM, "serve", str(path)], stdout=file, stderr=file)
        while (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.02)
        self.host = found[1]
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()


def push(registry, repository, tag, made, *, index=None):
    """Put a layout's image there by plain HTTP requests; *index* is a document to be put under the tag instead."""
    context = ssl.create_default_context(cafile=registry.tls.ca) if registry.tls else None

    def call(method, url, data=None, **headers):
        given = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(url, data, {"Authorization": f"Basic {given}", **headers}, method=method)
        return urllib.request.urlopen(request, context=context)

    base = f"{registry.url}/v2/{repository}"
    for blob in [made.config_path, *(made.layer_path(n) for n in range(len(made.layers)))]:
        location = call("POST", f"{base}/blobs/uploads/").headers["Location"]
        call("PUT", f"{location}&digest=sha256:{blob.name}", blob.read_bytes(), **{"Content-Type": "application/octet-stream"})
    media_type = json.loads(made.manifest)["mediaType"]
    call("PUT", f"{base}/manifests/{tag if index is None else made.manifest_digest}", made.manifest,
         **{"Content-Type": media_type})
    if index is not None:
        call("PUT", f"{base}/manifests/{tag}", json.dumps(index).encode(), **{"Content-Type": index["mediaType"]})


class Fake:
    """A registry with one image, under every repository and tag. ``hook(request)`` may answer first: true if it did."""

    def __init__(self, made=None, *, tls=None):
        self.made, self.tls, self.hook, self.requests = made, tls, None, []
        self.beside = {}   # tag → document: signatures, lists of referrers
        self.connections = 0
        fake = self

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):   # who breaks connections on purpose sees broken ones
                pass

        class Handler(_Handler):
            server_of = fake

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.context().wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://{self.host}"

    @property
    def reference(self):
        return f"docker://{self.host}/some/image"

    def asked(self, part):
        """The headers of each request whose path has *part* in it."""
        return [headers for _method, path, headers in self.requests if part in path]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of = None

    def setup(self):
        super().setup()
        self.server_of.connections += 1

    def do_GET(self):
        fake = self.server_of
        fake.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if fake.hook is None or not fake.hook(self):
            self.properly()

    do_POST = do_HEAD = do_PUT = do_GET

    def answer(self, status, body=b"", *, say_length=True, **headers):
        """Send an answer whose header names have ``_`` for ``-``."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if say_length and "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":       # a body would be taken for the next answer of this connection
            self.wfile.write(body)

    def cut(self):
        """End the connection here, in the middle of whatever was being said."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    @property
    def stored(self):
        """The bytes that are asked for; None if there are none."""
        made, last = self.server_of.made, self.path.split("?")[0].rpartition("/")[2]
        if made is None:
            return None
        if last.startswith("sha256-"):   # what is beside an image
            return self.server_of.beside.get(last)
        if "/referrers/" in self.path:
            return None
        if not last.startswith("sha256:"):
            return made.manifest if "/manifests/" in self.path else None
        path = Path(made.path, "blobs", *last.split(":"))
        return path.read_bytes() if path.exists() else None

    @property
    def wanted(self):
        """The ranges asked for, (first, one past the last)."""
        found = re.findall(r"(\d+)-(\d*)", self.headers.get("Range", ""))
        return [(int(a), int(b) + 1 if b else len(self.stored)) for a, b in found]

    def properly(self):
        data = self.stored
        if data is None:
            return self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"what the server says"}]}')
        if "/manifests/" in self.path:
            return self.answer(200, data, Content_Type=json.loads(data)["mediaType"])
        if len(self.wanted) == 1:
            ((start, end),) = self.wanted
            return self.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}")
        if self.wanted:
            body = b"".join(part(data, start, end) for start, end in self.wanted) + b"\r\n--THIS--\r\n"
            return self.answer(206, body, Content_Type="multipart/byteranges; boundary=THIS")
        return self.answer(200, data)


def part(data, start, end, *, told=None, boundary="THIS"):
    """A part of a multipart answer; *told* is what it says that it is."""
    told = told or f"bytes {start}-{end - 1}/{len(data)}"
    return f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {told}\r\n\r\n".encode() + data[start:end]
