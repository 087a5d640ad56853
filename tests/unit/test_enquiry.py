"""Enquiries: answered by a responder and by a session, without a trace; nothing else answers."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

import pytest

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.signaling.candidates import Candidate
from vela.signaling.codec import decode, encode
from vela.signaling.cookie import Cookies
from vela.signaling.enquiry import Enquiry
from vela.signaling.messages import (
    Acknowledge,
    Capability,
    CipherOffer,
    Description,
    HandshakePattern,
    MessageType,
    Offer,
    Request,
    Suites,
)
from vela.signaling.nonces import Nonces
from vela.signaling.policy import PeerCircuits, Policy
from vela.signaling.responder import Responder
from vela.signaling.session import Session
from vela.signaling.signer import Key, LocalKey

HERE, THERE = Endpoint(ip_address("192.0.2.1"), 48621), Endpoint(ip_address("192.0.2.2"), 48621)
OTHER = Endpoint(ip_address("192.0.2.3"), 48621)
KEY = LocalKey(bytes(range(32)))
LOCAL = Description(bytes.fromhex("02005e100001"), 1471, Capability(0), 48621, 5000)
CIPHERS = CipherOffer(HandshakePattern.NN_PSK0, Suites.AES_256_GCM)


def enquiry() -> Enquiry:
    return Enquiry(7, Nonces(random.Random(1)))


def asked(asking: Enquiry, *endpoints: Endpoint, key: Key | None = KEY) -> list[bytes]:
    candidates = [Candidate(each) for each in endpoints or (THERE,)]
    return [each.data for each in asking.ask(candidates, LOCAL, Offer(), key, None)]


def answer_to(data: bytes, key: Key | None = KEY) -> bytes:
    request = decode(data, key)
    return encode(Acknowledge(7, 99, request.sender_nonce, request.counter), key)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("ciphers", [None, CIPHERS])
def test_responder_answers_and_keeps_nothing(key: Key | None, ciphers: CipherOffer | None) -> None:
    policy = Policy(
        accept=True,
        sources=(ip_network("192.0.2.0/24"),),
        networks=(),
        bridges=(),
        interfaces="vela*",
        max_circuits=1,
        max_circuits_per_remote=1,
    )
    responder = Responder(policy, key, Cookies(random.Random(2)), 48621)
    responder.ciphers = ciphers
    asking = enquiry()
    (request,) = asking.ask([Candidate(THERE)], LOCAL, Offer(), key, ciphers)

    requested = responder.receive_datagram(
        request.data, HERE, 1000.0, peer_circuits=lambda: PeerCircuits(0, 0)
    )
    (answer,) = responder.datagrams_to_send()

    assert requested is None
    assert asking.is_answered_by(answer.data, THERE)


def test_session_of_the_circuit_answers_and_goes_on_seeking() -> None:
    session = Session(
        7,
        LOCAL,
        remote=HERE,
        key=KEY,
        cookies=Cookies(random.Random(2)),
        randomness=random.Random(3),
    )
    session.start(1000.0)
    session.handle_timer(1000.0)
    session.datagrams_to_send()
    asking = enquiry()
    (data,) = asked(asking)
    before = session.state

    session.receive_datagram(data, HERE, 1000.1, THERE.address)

    (answer,) = session.datagrams_to_send()
    assert asking.is_answered_by(answer.data, THERE)
    assert session.state is before


def test_all_addresses_are_asked_and_one_answer_is_enough() -> None:
    asking = enquiry()
    requests = asked(asking, THERE, OTHER)

    assert len({decode(data, KEY).counter for data in requests}) == 2
    assert asking.is_answered_by(answer_to(requests[0]), THERE)
    assert asking.is_answered_by(answer_to(requests[1]), OTHER)


def test_request_is_that_of_a_new_circuit() -> None:
    (data,) = asked(enquiry())
    request = decode(data, KEY)

    assert isinstance(request, Request)
    assert (data[2], request.resuming, request.receiver_nonce) == (MessageType.REQUEST, False, 0)


def test_answer_to_an_earlier_question_does_not_count() -> None:
    asking = enquiry()
    (first,) = asked(asking)
    asked(asking)

    assert not asking.is_answered_by(answer_to(first), THERE)


@pytest.mark.parametrize("source", [OTHER, HERE])
def test_answer_from_elsewhere_does_not_count(source: Endpoint) -> None:
    asking = enquiry()
    (data,) = asked(asking)

    assert not asking.is_answered_by(answer_to(data), source)


def test_answer_to_somebody_else_does_not_count() -> None:
    asking = enquiry()
    asked(asking)

    assert not asking.is_answered_by(encode(Acknowledge(7, 99, 12345, 1), KEY), THERE)


def test_answer_under_another_key_is_refused() -> None:
    asking = enquiry()
    (data,) = asked(asking)
    request = decode(data, KEY)
    forged = encode(Acknowledge(7, 99, request.sender_nonce, request.counter), LocalKey(bytes(32)))

    with pytest.raises(RemoteProtocolError, match="tag"):
        asking.is_answered_by(forged, THERE)
