"""Who has a port: which file a velad was started with, by its command line."""

from __future__ import annotations

import pytest

from vela.linux import port_holder
from vela.linux.usage import Program, program_with_port


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("python3", "/opt/vela/bin/velad"), "velad, pid 7, with /etc/vela.toml"),
        (("python3", "velad", "--config", "/a.toml"), "velad, pid 7, with /a.toml"),
        (("velad", "--config=b.toml"), "velad, pid 7, with /root/b.toml"),
        (("velad", "-c", "b.toml"), "velad, pid 7, with /root/b.toml"),
        (("velad", "-cb.toml"), "velad, pid 7, with /root/b.toml"),
        (("velad", "--config"), "velad, pid 7, with /root"),
        (("dnsmasq", "--conf-dir", "velad"), "python3, pid 7"),
        ((), "python3, pid 7"),
    ],
)
def test_holder_of_a_port_is_named_as_the_operator_knows_it(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], said: str
) -> None:
    found = Program(7, "python3", command, "/root")
    monkeypatch.setattr(port_holder, "program_with_port", lambda _: found)

    assert port_holder.port_holder(48621) == said


def test_port_that_nobody_has_has_no_holder() -> None:
    assert program_with_port(1) is None
    assert port_holder.port_holder(1) == ""
