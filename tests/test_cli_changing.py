"""What ``commit --change`` says becomes members of the image's config."""

import click
import pytest

from layerstore.cli.changing import changes

BASE = {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "Labels": {"a": "1"}}


@pytest.mark.parametrize(("text", "member", "value"), [
    ('CMD ["/app", "-x"]', "Cmd", ["/app", "-x"]), ('cmd=["/app"]', "Cmd", ["/app"]),
    ("CMD echo a=b", "Cmd", ["/bin/sh", "-c", "echo a=b"]), ("CMD [1]", "Cmd", ["/bin/sh", "-c", "[1]"]),
    ('ENTRYPOINT ["/e"]', "Entrypoint", ["/e"]),
    ("ENV B=2", "Env", ["PATH=/bin", "A=1", "B=2"]), ("ENV=PATH=/x:/y", "Env", ["A=1", "PATH=/x:/y"]), ("ENV A", "Env", ["PATH=/bin", "A="]),
    ("LABEL b=c=d", "Labels", {"a": "1", "b": "c=d"}), ("WORKDIR /srv", "WorkingDir", "/srv"), ("USER 1000:1000", "User", "1000:1000"),
    ("EXPOSE 80/tcp", "ExposedPorts", {"80/tcp": {}}), ("VOLUME /data", "Volumes", {"/data": {}}), ("STOPSIGNAL SIGINT", "StopSignal", "SIGINT"),
])
def test_an_instruction_changes_its_member_alone(text, member, value):
    assert changes([text])(BASE) == {**BASE, member: value}


def test_several_are_done_in_their_order_and_the_base_stays_as_it_was():
    before = {**BASE, "Env": [*BASE["Env"]]}
    assert changes(["ENV A=2", "ENV A=3", "USER me"])(BASE) == {**BASE, "Env": ["PATH=/bin", "A=3"], "User": "me"}
    assert before == BASE


def test_without_any_nothing_is_changed():
    assert changes([])(BASE) == BASE


@pytest.mark.parametrize("text", ["RUN ls", "CMD", "", "ENV =1", "LABEL =x"])
def test_what_is_no_change_is_refused(text):
    with pytest.raises(click.UsageError):
        changes([text])
