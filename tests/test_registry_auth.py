"""Who asks a registry: where credentials are found, how challenges are answered, and that secrets show nowhere."""

import base64
import json
import logging
import os
import stat
import traceback
from urllib.parse import parse_qs, urlsplit

import pytest

from layerstore import Credentials, errors
from layerstore.sources import open_source
from layerstore.sources.registry.authfiles import auth_files, find_credentials
from layerstore.sources.registry.challenges import parse_challenges
from layerstore.sources.registry.names import parse_name
from registries import Authority, Fake, quick
from storekit import image, in_child

NAME = parse_name("docker://host.test:5000/a/b/c")
SECRET = "open sesame"   # what must not be seen, in any of its forms
BASIC = base64.b64encode(f"user:{SECRET}".encode()).decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return image(tmp_path_factory.mktemp("image"))


@pytest.fixture(autouse=True)
def nobodys_files(tmp_path, monkeypatch):
    """No test reads the credentials of who runs it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def resolve(fake, **changes):
    with open_source(fake.reference, registry=quick(**changes)) as source:
        return source.resolve()


class Tokens:
    """A hook that wants a token, and is the token server, too. What it gives is ``token-1``, ``token-2`` …"""

    def __init__(self, challenge=None, **answer):
        self.challenge, self.answer, self.given, self.asked = challenge, answer, 0, []

    def __call__(self, request):
        if request.path.startswith("/token"):
            length = int(request.headers.get("Content-Length", 0))
            self.asked.append((request.command, parse_qs(urlsplit(request.path).query),
                               request.headers.get("Authorization"), parse_qs(request.rfile.read(length).decode())))
            self.given += 1
            request.answer(200, json.dumps({"token": f"token-{self.given}", **self.answer}).encode())
            return True
        if request.headers.get("Authorization") == f"Bearer token-{self.given}":
            return False
        host = request.headers["Host"]
        request.answer(401, WWW_Authenticate=self.challenge or f'Bearer realm="http://{host}/token?a=b",service="the service"')
        return True


# -- challenges -----------------------------------------------------------------------------------------------------

def test_challenges_are_told_apart_in_one_header():
    header = 'Basic realm="a, b=\\"c\\"", Bearer realm="https://h.test/t",service=s , scope="x:y:pull,push",Negotiate'
    found = [(each.scheme, dict(each.parameters)) for each in parse_challenges(header)]
    assert found == [("basic", {"realm": 'a, b="c"'}),
                     ("bearer", {"realm": "https://h.test/t", "service": "s", "scope": "x:y:pull,push"}), ("negotiate", {})]


@pytest.mark.parametrize("header", ["", ",,,", '"', "=", 'Bearer realm="' + "x" * 99, "Bearer " + 'a="\\' * 9999, " " * 99999])
def test_a_header_that_is_no_challenge_is_read_as_far_as_it_goes(header):
    parse_challenges(header)


@pytest.mark.parametrize("token", ["YIIabc==", "abc", "a+b/c~", "TlRMTVNTUAACAAAA"])
def test_a_challenge_that_is_one_word_does_not_hide_the_next(token):
    found = parse_challenges(f'Negotiate {token}, Basic realm="x"')
    assert [(each.scheme, dict(each.parameters)) for each in found] == [("negotiate", {}), ("basic", {"realm": "x"})]


# -- tokens ---------------------------------------------------------------------------------------------------------

def test_a_token_is_fetched_anonymously_for_this_repository_and_used_for_all_requests(made):
    with Fake(made) as fake:
        fake.hook = tokens = Tokens('Bearer realm="http://HOST/token?a=b",service="the service",scope="repository:other:push"')
        tokens.challenge = tokens.challenge.replace("HOST", fake.host)
        resolve(fake)
        assert tokens.asked == [
            ("GET", {"a": ["b"], "service": ["the service"], "scope": ["repository:some/image:pull"]}, None, {})]
        assert [headers.get("authorization") for headers in fake.asked("/v2/")] == [None, "Bearer token-1", "Bearer token-1"]


def test_credentials_go_to_the_token_server_and_not_to_the_registry(made):
    with Fake(made) as fake:
        fake.hook = tokens = Tokens()
        resolve(fake, credentials=Credentials("user", SECRET))
        assert tokens.asked[0][1]["account"] == ["user"]
        assert tokens.asked[0][2] == f"Basic {BASIC}"
        assert all(BASIC not in str(headers) for headers in fake.asked("/v2/"))


def test_an_identity_token_is_posted_and_is_in_no_url(made):
    with Fake(made) as fake:
        fake.hook = tokens = Tokens()
        resolve(fake, credentials=Credentials(identity_token="refresh me"))
        method, query, _said, form = tokens.asked[0]
        assert (method, query) == ("POST", {"a": ["b"]})
        assert form["refresh_token"] == ["refresh me"] and form["grant_type"] == ["refresh_token"]
        assert form["scope"] == ["repository:some/image:pull"]


@pytest.mark.parametrize("query", ["empty=&a=b", "a=b%2Fc%20d&flag", "sig=x%7Ey"])
def test_the_realms_own_query_is_sent_as_it_was_named(made, query):
    with Fake(made) as fake:
        fake.hook = tokens = Tokens(f'Bearer realm="http://{fake.host}/token?{query}",service="s"')
        resolve(fake)
        assert tokens.given == 1
        (path,) = [path for _method, path, _headers in fake.requests if path.startswith("/token")]
        assert path == f"/token?{query}&service=s&scope=repository%3Asome%2Fimage%3Apull"


def test_access_token_is_the_other_name_of_a_token(made):
    with Fake(made) as fake:
        fake.hook = Tokens(token="", access_token="token-1")
        resolve(fake)


def test_a_token_that_is_refused_is_renewed_once(made):
    with Fake(made) as fake:
        fake.hook = tokens = Tokens()
        with open_source(fake.reference, registry=quick()) as source:
            blob = source.resolve().layers[0].blob
            tokens.given += 1   # from now on token-1 is refused
            blob.open().read()
            assert tokens.given == 3
            tokens.given += 1
            tokens.answer = {"token": "never-right"}
            with pytest.raises(errors.RegistryAccessError):
                blob.open().read()
        assert len(tokens.asked) == 3


def test_a_token_whose_time_is_over_is_renewed_unasked(made, monkeypatch):
    with Fake(made) as fake:
        fake.hook = tokens = Tokens(expires_in=300)
        with open_source(fake.reference, registry=quick()) as source:
            blob = source.resolve().layers[0].blob
            blob._client._authority._until -= 301
            blob.open().read()
        assert tokens.given == 2
        assert [h.get("authorization") for h in fake.asked("/v2/")][-1] == "Bearer token-2"
        assert len(fake.asked("/v2/")) == 4   # 401, manifest, config, layer: no second 401


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"token":5}', b'{"token":"a b"}', b'{"token":"a\\r\\nX: y"}', b"{" * 99999,
                                    b'{"token":"' + b"x" * (2 << 20) + b'"}'])
def test_a_token_server_that_answers_something_else_is_a_typed_error(made, answer):
    with Fake(made) as fake:
        tokens = Tokens()
        fake.hook = lambda r: not r.answer(200, answer) if r.path.startswith("/token") else tokens(r)
        with pytest.raises(errors.RegistryError):
            resolve(fake)


@pytest.mark.parametrize(("status", "error"), [(401, errors.RegistryAccessError), (403, errors.RegistryAccessError),
                                               (404, errors.RegistryAccessError), (503, errors.RegistryUnavailableError)])
def test_a_token_server_that_refuses_is_a_typed_error(made, status, error):
    with Fake(made) as fake:
        tokens = Tokens()
        fake.hook = lambda r: not r.answer(status) if r.path.startswith("/token") else tokens(r)
        with pytest.raises(error):
            resolve(fake)
        assert len(fake.asked("/token")) == (3 if status == 503 else 1)


@pytest.mark.parametrize("realm", ["ftp://h.test/t", "file:///etc/passwd", "https://me:pw@h.test/t", "//h.test/t", "", "https://[::1/t"])
def test_a_token_server_that_is_none_of_http_is_not_asked(made, realm):
    with Fake(made) as fake:
        fake.hook = Tokens(f'Bearer realm="{realm}"')
        with pytest.raises(errors.RegistryError):
            resolve(fake, credentials=Credentials("user", SECRET))


def test_a_token_server_without_tls_is_not_asked_where_tls_was_not_given_up(made, tmp_path):
    authority = Authority(tmp_path / "a")
    with Fake() as elsewhere, Fake(made, tls=authority) as fake:
        fake.hook = Tokens(f'Bearer realm="{elsewhere.url}/token"')
        with pytest.raises(errors.RegistryError):
            resolve(fake, credentials=Credentials("user", SECRET), plain_http=False, ca_file=authority.ca)
        assert not elsewhere.requests


def test_a_challenge_is_looked_for_where_the_version_is_asked_for_when_the_answer_has_none(made):
    with Fake(made) as fake:
        tokens = Tokens()

        def hook(request):
            if request.path.startswith("/v2/some") and not request.headers.get("Authorization"):
                return not request.answer(401)
            return tokens(request)

        fake.hook = hook
        resolve(fake)
        assert len(fake.asked("/v2/")) == 4   # refused, the version, manifest, config


def test_an_authentication_that_nobody_knows_is_a_typed_error(made):
    with Fake(made) as fake:
        fake.hook = Tokens("Negotiate")
        with pytest.raises(errors.RegistryAccessError, match="neither Bearer nor Basic"):
            resolve(fake)


# -- secrets --------------------------------------------------------------------------------------------------------

def test_credentials_have_no_repr_and_are_not_pickled():
    import pickle

    options = quick(credentials=Credentials("user", SECRET, identity_token="refresh me"))
    assert SECRET not in repr(options) and "refresh me" not in repr(options) and "user" not in repr(options)
    with pytest.raises(TypeError):
        pickle.dumps(options.credentials)


def test_secrets_are_in_no_error_traceback_or_log_record(made, caplog):
    caplog.set_level(logging.DEBUG)

    def hook(request):   # says all that it was told, wherever it can
        told = f"{request.headers.get('Authorization')} {SECRET}"
        if request.headers.get("Authorization") is None:
            return not request.answer(401, WWW_Authenticate="Basic realm=x")
        if "signed" in request.path:
            return not request.answer(418, json.dumps({"errors": [{"code": told, "message": told}]}).encode(), X_Told=told)
        return not request.answer(307, Location=f"{elsewhere.url}/path-{SECRET.replace(' ', '-')}?signed={BASIC}", X_Told=told)

    with Fake(made) as fake, Fake() as elsewhere:
        fake.hook = hook
        for there in (hook, lambda request: request.cut() or True, None):
            elsewhere.hook = there
            with pytest.raises(errors.RegistryError) as caught:
                resolve(fake, credentials=Credentials("user", SECRET))
            seen = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.hint + caught.value.url
            assert elsewhere.host in seen
            for secret in (SECRET, SECRET.replace(" ", "-"), BASIC):
                assert secret not in seen
        assert elsewhere.requests
    assert BASIC not in caplog.text and SECRET not in caplog.text


# -- files ----------------------------------------------------------------------------------------------------------

def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def entry(password):
    return {"auth": base64.b64encode(f"user:{password}".encode()).decode()}


def found_in(tmp_path, document):
    found = find_credentials(NAME, write(tmp_path / "given.json", document))
    return found and (found.basic(), found.identity_token)


def basic(password):
    return "Basic " + entry(password)["auth"], ""


def test_the_files_are_looked_at_in_the_order_of_the_field(tmp_path, monkeypatch):
    home = tmp_path / "home"
    assert [path for path, _must in auth_files(None)] == [
        f"/run/containers/{os.getuid()}/auth.json", f"{home}/.config/containers/auth.json", f"{home}/.docker/config.json"]
    for name, value in (("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")):
        monkeypatch.setenv(name, value)
    assert [path for path, _must in auth_files(None)] == ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json"]
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/f")
    assert list(auth_files(None)) == [("/f", True)]
    assert list(auth_files("/g")) == [("/g", True)]


def test_the_first_file_with_an_entry_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    home = tmp_path / "home"
    write(home / ".docker/config.json", {"auths": {"host.test:5000": entry("docker")}})
    assert find_credentials(NAME, None).basic() == basic("docker")[0]
    write(home / ".config/containers/auth.json", {"auths": {"host.test:5000": entry("config")}})
    assert find_credentials(NAME, None).basic() == basic("config")[0]
    write(tmp_path / "run/containers/auth.json", {"auths": {"other.test": entry("run")}})
    assert find_credentials(NAME, None).basic() == basic("config")[0]
    write(tmp_path / "run/containers/auth.json", {"auths": {"host.test:5000": entry("run")}})
    assert find_credentials(NAME, None).basic() == basic("run")[0]


def test_a_usual_file_in_a_directory_that_is_closed_to_this_user_is_not_there_and_a_given_one_is_an_error(tmp_path, monkeypatch):
    """As root's podman leaves /run/containers, where an ordinary user without XDG_RUNTIME_DIR is looked for, too."""
    write(tmp_path / "run/containers/auth.json", {"auths": {"host.test:5000": entry("run")}})
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    os.chmod(tmp_path / "run", 0)

    def as_ordinary_user():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        assert find_credentials(NAME, None) is None
        with pytest.raises(errors.SourceError, match="Permission denied"):
            find_credentials(NAME, str(tmp_path / "run/containers/auth.json"))

    try:
        assert in_child(as_ordinary_user) == 0
    finally:
        os.chmod(tmp_path / "run", 0o700)


def test_the_closest_key_counts(tmp_path):
    auths = {"https://host.test:5000/v1/": entry("url")}
    for key in ("host.test:5000", "host.test:5000/a", "host.test:5000/a/b", "host.test:5000/a/b/c"):
        assert found_in(tmp_path, {"auths": auths}) != basic(key)
        auths = {key: entry(key), **auths}
        assert found_in(tmp_path, {"auths": auths}) == basic(key)
    assert found_in(tmp_path, {"auths": {"https://host.test:5000/v1/": entry("url")}}) == basic("url")
    for other in ("host.test", "host.test:5000/a/b/c/d", "host.test:5000/a/b/cc", "test:5000", "https://host.test/v1/"):
        assert found_in(tmp_path, {"auths": {other: entry("other")}}) is None


HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")   # one registry; docker and podman log in under other names


@pytest.mark.parametrize("host", HUB)
def test_a_registry_of_several_names_has_the_credentials_of_each(tmp_path, host):
    name, found = parse_name(f"docker://{host}/a/b"), {}
    for key in (*HUB, "https://index.docker.io/v1/", "https://index.docker.io/v1/access-token", "docker.io/a", "docker.io/a/b"):
        given = write(tmp_path / "given.json", {"auths": {key: entry(key), "other.test": entry("other")}})
        found[key] = find_credentials(name, given).basic() == basic(key)[0]
    assert all(found.values()), found


def test_a_url_with_more_of_a_path_comes_after_the_registrys_own(tmp_path):
    """A login in the browser leaves docker's own tokens beside the password, and so before it in a sorted file."""
    url = "https://host.test:5000/v1/"
    auths = {f"{url}access-token": entry("token"), url: entry("right"), f"{url}refresh-token": entry("token")}
    assert found_in(tmp_path, {"auths": auths}) == basic("right")


def test_the_name_that_was_written_comes_before_the_registrys_others(tmp_path):
    auths = {"https://index.docker.io/v1/": entry("docker"), "docker.io": entry("podman")}
    for host, wanted in (("docker.io", "podman"), ("index.docker.io", "podman"), ("registry-1.docker.io", "podman")):
        given = write(tmp_path / "given.json", {"auths": auths})
        assert find_credentials(parse_name(f"docker://{host}/a/b"), given).basic() == basic(wanted)[0]


def test_a_name_under_which_there_is_nothing_does_not_hide_the_next(tmp_path, helper):
    helper("""read host; case $host in
        https:*) echo '{"Username":"user","Secret":"helped"}';;
        *) echo credentials not found in native keychain; exit 1
    esac""")
    login, name = "https://index.docker.io/v1/", parse_name("docker://docker.io/a/b")
    for document, wanted in (
        ({"auths": {"docker.io": {}, login: entry("docker")}}, "docker"),
        ({"auths": {"docker.io/a": {}, "docker.io": {}, "index.docker.io": entry("docker")}}, "docker"),
        ({"credHelpers": {"docker.io": "test", login: "test"}, "auths": {"docker.io": entry("file")}}, "helped"),
        ({"credHelpers": {"docker.io": "test"}, "auths": {login: entry("file")}}, "file"),
        ({"credHelpers": {"docker.io": "test"}, "auths": {login: {}}, "credsStore": "test"}, "helped"),
    ):
        found = find_credentials(name, write(tmp_path / "given.json", document))
        assert found is not None and found.basic() == basic(wanted)[0], document


def test_an_entry_may_hold_user_and_password_as_they_are(tmp_path):
    """As pull secrets that were written by hand do; docker reads them."""
    plain = {"username": "user", "password": SECRET}
    assert found_in(tmp_path, {"auths": {"host.test:5000": plain}}) == basic(SECRET)
    assert found_in(tmp_path, {"auths": {"host.test:5000": {**plain, **entry("x")}}}) == basic("x")
    for broken in ({"username": "user"}, {"password": SECRET}, {"username": "", "password": SECRET}):
        assert found_in(tmp_path, {"auths": {"host.test:5000": broken}}) is None
    for wrong in ({**plain, "password": 5}, {**plain, "username": f"a:{SECRET}"}):
        with pytest.raises(errors.SourceError) as caught:
            found_in(tmp_path, {"auths": {"host.test:5000": wrong}})
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_identity_token_comes_before_a_password(tmp_path):
    found = found_in(tmp_path, {"auths": {"host.test:5000": {**entry("x"), "identitytoken": "refresh me"}}})
    assert found[1] == "refresh me"


def test_an_empty_entry_is_none(tmp_path):
    assert found_in(tmp_path, {"auths": {"host.test:5000": {}}}) is None
    assert found_in(tmp_path, {}) is None


@pytest.mark.parametrize("document", ["", "[]", '{"auths": 5', '{"auths": []}', '{"auths": {"host.test:5000": "SECRETS"}}', "[" * 99999,
                                      '{"auths": {"host.test:5000": {"auth": "SECRETS!"}}}', '{"SECRETS": ' + "9" * (1 << 20) + "}",
                                      '{"auths": {"host.test:5000": {"auth": "U0VDUkVUUw=="}}}', '{"x": SECRETS}'])
def test_a_file_that_is_broken_is_named_and_not_quoted(tmp_path, document):
    with pytest.raises(errors.SourceError) as caught:
        found_in(tmp_path, document)
    seen = "".join(traceback.format_exception(caught.value))
    assert "given.json" in str(caught.value)
    assert "SECRETS" not in seen and "U0VDUkVUUw" not in seen


def test_a_file_that_was_named_must_be_there(tmp_path):
    with pytest.raises(errors.SourceError, match="none.json"):
        find_credentials(NAME, str(tmp_path / "none.json"))


def test_no_file_is_read_and_no_helper_run_for_a_registry_that_does_not_ask(made, tmp_path):
    with Fake(made) as fake:
        resolve(fake, auth_file=str(tmp_path / "none.json"))
        fake.hook = Tokens("Basic realm=x")
        with pytest.raises(errors.SourceError, match="none.json"):
            resolve(fake, auth_file=str(tmp_path / "none.json"))


# -- helpers --------------------------------------------------------------------------------------------------------

@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Installs ``docker-credential-test``, a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def install(script):
        program = tmp_path / "bin" / "docker-credential-test"
        write(program, f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


def test_a_helper_is_asked_for_the_host(tmp_path, helper):
    helper('read host; [ "$1 $host" = "get host.test:5000" ] && echo \'{"ServerURL":"x","Username":"user","Secret":"helped"}\'')
    configured = {"credHelpers": {"host.test:5000": "test"}, "auths": {"host.test:5000": entry("other")}}
    assert found_in(tmp_path, configured) == basic("helped")
    assert found_in(tmp_path, {"credsStore": "test", "auths": {"host.test:5000": {}}}) == basic("helped")
    assert found_in(tmp_path, {"credsStore": "test", "auths": {"host.test:5000": entry("file")}}) == basic("file")


def test_a_helper_is_asked_under_the_name_that_the_login_gave_it(tmp_path, helper):
    helper('read host; echo "{\\"Username\\":\\"user\\",\\"Secret\\":\\"$host\\"}"')
    name = parse_name("docker://docker.io/a/b")

    def asked(document):
        return find_credentials(name, write(tmp_path / "given.json", document)).basic()

    assert asked({"credHelpers": {"docker.io": "test"}}) == basic("docker.io")[0]
    assert asked({"credHelpers": {"https://index.docker.io/v1/": "test"}}) == basic("https://index.docker.io/v1/")[0]
    assert asked({"credsStore": "test"}) == basic("https://index.docker.io/v1/")[0]   # where docker login puts it


def test_a_helper_may_have_an_identity_token(tmp_path, helper):
    helper('echo \'{"Username":"<token>","Secret":"refresh me"}\'')
    assert found_in(tmp_path, {"credsStore": "test"})[1] == "refresh me"


def test_a_helper_that_has_none_has_none(tmp_path, helper):
    helper("echo credentials not found in native keychain; exit 1")
    assert found_in(tmp_path, {"credHelpers": {"host.test:5000": "test"}}) is None


@pytest.mark.parametrize("script", ["echo SECRETS; echo SECRETS >&2; exit 3", "echo SECRETS", "echo '[]'", "echo '{\"Username\":\"SECRETS\"}'"])
def test_a_helper_that_fails_is_named_and_not_quoted(tmp_path, helper, script):
    helper(script)
    with pytest.raises(errors.SourceError) as caught:
        found_in(tmp_path, {"credHelpers": {"host.test:5000": "test"}})
    assert "docker-credential-test" in str(caught.value)
    assert "SECRETS" not in "".join(traceback.format_exception(caught.value))


def test_a_helper_that_hangs_is_ended(tmp_path, helper, monkeypatch):
    from layerstore.sources.registry import helpers

    monkeypatch.setattr(helpers, "_SECONDS", 0.1)
    helper("exec sleep 600")
    with pytest.raises(errors.SourceError, match="did not answer"):
        found_in(tmp_path, {"credHelpers": {"host.test:5000": "test"}})


def test_a_helper_that_is_missing_is_an_error_only_where_it_is_for_this_host(tmp_path):
    with pytest.raises(errors.SourceError, match="not installed"):
        found_in(tmp_path, {"credHelpers": {"host.test:5000": "none-such"}})
    assert found_in(tmp_path, {"credsStore": "none-such"}) is None


@pytest.mark.parametrize("name", ["../test", "a b", "", 5, "a/b"])
def test_a_helpers_name_is_no_path(tmp_path, name):
    with pytest.raises(errors.SourceError):
        found_in(tmp_path, {"credHelpers": {"host.test:5000": name}})


# -- certs.d --------------------------------------------------------------------------------------------------------

def test_the_hosts_directory_of_certificates_is_trusted_for_it(made, tmp_path):
    authority = Authority(tmp_path / "a")
    with Fake(made, tls=authority) as fake:
        with pytest.raises(errors.RegistryError, match="certificate"):
            resolve(fake, plain_http=False)
        directory = tmp_path / "home/.config/containers/certs.d" / fake.host
        write(directory / "ca.crt", open(authority.ca).read())
        resolve(fake, plain_http=False)
        write(directory / "me.cert", "no certificate")
        with pytest.raises(errors.SourceError, match="me.cert"):
            resolve(fake, plain_http=False)


def test_a_file_of_certificates_that_is_none_is_named(tmp_path):
    for path in (write(tmp_path / "ca.pem", "none"), str(tmp_path / "missing.pem")):
        with pytest.raises(errors.SourceError, match=os.path.basename(path)):
            open_source("docker://localhost/a", registry=quick(plain_http=False, ca_file=path))


def test_a_registry_without_tls_is_not_spoken_to_in_the_clear(made):
    with Fake(made) as fake:
        with pytest.raises(errors.RegistryError, match="does not speak TLS") as caught:
            resolve(fake, plain_http=False)
        assert "--plain-http" in caught.value.hint
        assert not fake.requests
