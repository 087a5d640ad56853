"""From which ports messages without a tag are taken."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from vela.address import Endpoint
from vela.signaling.messages import MessageType
from vela.signaling.remote_port import RemotePort

ADDRESS = ip_address("192.0.2.2")
REMOTE = Endpoint(ADDRESS, 48621)
ELSEWHERE = Endpoint(ADDRESS, 50000)
ASKS = (MessageType.REQUEST, MessageType.CONFIRM)
OTHERS = tuple(each for each in MessageType if each not in ASKS)


def takes(
    kind: MessageType,
    source: Endpoint,
    translated: bool | None,
    remote: Endpoint | None = REMOTE,
    asked: tuple[Endpoint, ...] = (),
    *,
    maker: bool = False,
    in_session: bool = False,
) -> bool:
    port = RemotePort()
    port.translated = translated
    return port.may_send(
        kind, source, remote, asked=asked, maker_is_known=maker, in_session=in_session
    )


@pytest.mark.parametrize("kind", MessageType)
@pytest.mark.parametrize("translated", [None, False, True])
def test_message_from_the_remotes_port_or_where_none_is_known_is_taken(
    kind: MessageType, translated: bool | None
) -> None:
    assert takes(kind, REMOTE, translated)
    assert takes(kind, ELSEWHERE, translated, remote=None)
    assert takes(kind, ELSEWHERE, translated, asked=(ELSEWHERE,))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("in_session", [False, True])
def test_answer_from_another_port_is_taken_only_where_the_port_is_translated(
    kind: MessageType, in_session: bool
) -> None:
    found = [takes(kind, ELSEWHERE, each, in_session=in_session) for each in (None, False, True)]
    known = [takes(kind, ELSEWHERE, each, maker=True) for each in (None, False, True)]

    assert found == known == [False, False, True]


@pytest.mark.parametrize("kind", ASKS)
def test_request_from_another_port_is_taken_unless_the_port_is_known_or_there_is_a_session(
    kind: MessageType,
) -> None:
    assert [takes(kind, ELSEWHERE, each) for each in (None, False, True)] == [True, False, True]
    assert not any(takes(kind, ELSEWHERE, each, in_session=True) for each in (None, False, True))
    # The machine that set the circuit up is known by another mark.
    assert all(
        takes(kind, ELSEWHERE, each, maker=True, in_session=True) for each in (None, False, True)
    )
