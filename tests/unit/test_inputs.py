"""Which messages count in which state, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_link import CIRCUIT, LOCAL2, OFFER, ROUTER2

from vela.address import Endpoint
from vela.signaling.inputs import AnyInput, Input, Received, State, classify
from vela.signaling.link import Link
from vela.signaling.messages import (
    Acknowledge,
    Close,
    Confirm,
    Keepalive,
    Message,
    MessageType,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.renewal import Purpose, Renewal

OURS, THEIRS, RENEWED = 0x11, 0x22, 0x33
# This end asked for it, counts 5, and has heard 7.
LINK = Link(CIRCUIT, OURS, THEIRS, ROUTER2, None, sent=5, heard=7)
ACCEPTED = replace(LINK, accepted=True)
ASKED = replace(LINK, remote_nonce=0, heard=0)
RENEWAL = Renewal(Link(CIRCUIT, RENEWED, 0, ROUTER2, None, sent=1), Purpose.LOST)
REQUEST = Request(CIRCUIT, 0x77, 0, 1, LOCAL2, OFFER)
CONFIRM = Confirm(CIRCUIT, THEIRS, OURS, 8, LOCAL2, OFFER)
CLOSE = Close(CIRCUIT, THEIRS, OURS, 8, 1)


def reject(code: int, nonce: int = OURS, counter: int = 5) -> Reject:
    return Reject(CIRCUIT, THEIRS, nonce, counter, code, "")


def found(
    message: Message,
    state: State,
    link: Link | None,
    renewal: Renewal | None = None,
    *,
    source: Endpoint = ROUTER2,
    cookie: bool = False,
) -> AnyInput | None:
    return classify(Received(1.0, message, source), state, link, renewal, lambda _: cookie)


@pytest.mark.parametrize(
    ("message", "link", "renewal", "counts"),
    [
        (REQUEST, None, None, True),
        (REQUEST, LINK, RENEWAL, True),
        (replace(REQUEST, sender_nonce=0), None, None, False),
        (replace(REQUEST, receiver_nonce=1), None, None, False),
    ],
)
def test_request_counts_if_it_asks_for_a_session(
    message: Request, link: Link | None, renewal: Renewal | None, counts: bool
) -> None:
    assert found(message, State.UP, link, renewal) == (MessageType.REQUEST if counts else None)
    from_nowhere = Endpoint(ROUTER2.address, 0)
    assert found(message, State.UP, link, renewal, source=from_nowhere) is None


@pytest.mark.parametrize(
    ("sender", "receiver", "link", "renewal", "counts"),
    [
        (THEIRS, OURS, ASKED, None, True),
        (0, OURS, ASKED, None, False),
        (THEIRS, 0x99, ASKED, None, False),
        (THEIRS, OURS, LINK, None, False),  # there was an answer
        (THEIRS, RENEWED, LINK, RENEWAL, True),
        (THEIRS, OURS, ASKED, RENEWAL, False),
        (THEIRS, OURS, None, None, False),
    ],
)
def test_acknowledge_counts_once_for_what_was_asked(
    sender: int, receiver: int, link: Link | None, renewal: Renewal | None, counts: bool
) -> None:
    message = Acknowledge(CIRCUIT, sender, receiver, 1)

    expected = MessageType.ACKNOWLEDGE if counts else None
    assert found(message, State.REQUESTING, link, renewal) == expected


def test_confirm_counts_with_its_cookie_or_in_its_session() -> None:
    assert found(CONFIRM, State.IDLE, None, cookie=True) is MessageType.CONFIRM
    assert found(CONFIRM, State.IDLE, None) is None
    assert found(CONFIRM, State.LINKED, ACCEPTED, cookie=True) is Input.CONFIRM_AGAIN
    assert found(replace(CONFIRM, counter=7), State.LINKED, ACCEPTED, cookie=True) is None
    # Of the session that this end began, it is none.
    assert found(CONFIRM, State.LINKED, LINK, cookie=True) is MessageType.CONFIRM


@pytest.mark.parametrize("state", State)
def test_reject_counts_for_what_this_end_sent_and_in_a_session_only_if_that_is_lost(
    state: State,
) -> None:
    in_session = state in (State.LINKED, State.UP, State.CLOSING)
    right, wrong = RejectCode.NO_SUCH_SESSION, RejectCode.FAILED
    if not in_session:
        right, wrong = wrong, right

    assert found(reject(right), state, LINK) is MessageType.REJECT
    assert found(reject(right, counter=4), state, LINK) is MessageType.REJECT
    assert found(reject(wrong), state, LINK) is None
    assert found(reject(right, counter=6), state, LINK) is None
    assert found(reject(right, nonce=0x99), state, LINK) is None
    assert found(reject(right), state, ACCEPTED) is None
    assert found(reject(right), state, None) is None


@pytest.mark.parametrize(
    "message",
    [
        CLOSE,
        Keepalive(CIRCUIT, THEIRS, OURS, 8, LOCAL2, 5, 0, None, True),
    ],
)
def test_message_of_a_session_counts_if_it_is_newer_than_all_before(message: Message) -> None:
    assert isinstance(found(message, State.UP, LINK), MessageType)
    assert isinstance(found(message, State.UP, ACCEPTED), MessageType)
    for change in ({"counter": 7}, {"sender_nonce": 1}, {"receiver_nonce": 1}):
        assert found(replace(message, **change), State.UP, LINK) is None
    assert found(message, State.UP, None) is None
    assert found(replace(message, sender_nonce=0), State.REQUESTING, ASKED) is None


@pytest.mark.parametrize(
    "message",
    [Probe(CIRCUIT, THEIRS, OURS, 8, 1400), ProbeReply(CIRCUIT, THEIRS, OURS, 8, 1400)],
)
def test_probe_counts_once_even_if_later_messages_have_overtaken_it(message: Message) -> None:
    link = replace(LINK)
    for counter in (9, 90, 40, 92):
        assert found(replace(message, counter=counter), State.UP, link) is not None
        link.hear(counter)

    for counter in (9, 28, 40, 90, 92):
        assert found(replace(message, counter=counter), State.UP, link) is None
    for counter in (29, 39, 41, 89, 91, 93, 1000):
        assert found(replace(message, counter=counter), State.UP, link) is not None
    for change in ({"sender_nonce": 1}, {"receiver_nonce": 1}):
        assert found(replace(message, counter=91, **change), State.UP, link) is None


def test_input_tells_what_is_missing_in_it() -> None:
    with pytest.raises(RuntimeError, match="Confirm is due"):
        Received(1.0, CLOSE, ROUTER2).message_of(Confirm)
    with pytest.raises(RuntimeError, match="without a source"):
        _ = Received(1.0).source
