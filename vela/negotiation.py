"""Autoconfiguration, and the liveness of every circuit that is not static. Pure.

docs/protocol.md, section 4. All of it is here by name; it does no I/O and reads no clock. The
contract of Session, after aioquic's:

    in    receive_datagram(data, source, now, here)   handle_timer(now)
          start, accept, suspend, close, retry, probe, set_local, set_remote
    out   datagrams_to_send()   next_event()   next_timer()

now is monotonic seconds; after each call in, the outs are asked: next_event() first, so that
nothing is announced that cannot be done (suspend), next_timer() last. here is which of this end's
addresses a datagram came to. Send from the listening socket, and the address that Datagram.here
names. A daemon has one Cookies, one Responder, and a Session for each circuit:

    header = read_header(data)                    # RemoteProtocolError: count it
    session = sessions.get((source.address, header.circuit_id))
    if session is not None:
        session.receive_datagram(data, source, now, here)
    else:
        requested = responder.receive_datagram(data, source, count, now, here=here)
        if requested is not None:                 # make the interface, or responder.reject(...)
            session = Session(requested.circuit_id, local, remote=None, key=key, cookies=cookies,
                              randomness=SystemRandom(), policy=policy)
            session.accept(requested, now)

A circuit of the configuration: Session(..., offer=config.peer), then start(). One that another
machine set up, after a restart here: policy=, remote= where it was last, offer= what was kept
(requested.offer), then start(): it asks for the session to be resumed, so
it is back before the remote has missed it. A circuit that is set up anew gets cookies of its own
session; those for an earlier session, or for one not begun from here, count no more.

Events, in the order in which they happened:

    Agreed(agreement)     MACs, MTU, elision, checksums, keepalive, NAT: for this session, before
                          Up; and again when the remote says that one changed
    Up                    carrier on
    Down(reason)          carrier off; it seeks the remote again by itself
    ResolveWanted         look the name up, set_remote(endpoint)
    Unanswered(reason)    every three requests in a row: for the status, until the next event;
                          set_remote(endpoint), if the remote has another one
    Rejected(code, text)  for the status; asked again later
    OfferChanged(requested)  the machine that set this circuit up wants it otherwise, and the policy
                          allows it: as above, with a session in place of this one, or reject
    ProbeAnswered(size)
    Closed(by_remote)     over. by_remote: the circuit was deleted there, delete it here if it was
                          set up from there. Its last datagrams are still to be sent. start()
                          begins again.

States and the status words: REQUESTING, CONFIRMING, LINKED are "connecting" before the first Up
and "down" after a Down; REJECTED is "rejected", UP is "up", CLOSED "disabled", SUSPENDED "failed".

The handshake. The initiator's nonce is fresh for every attempt; the responder's is the cookie, so
a pair of nonces names a session that both ends have shown to be able to hear of. Cookies are bound
to the session that the responder has when it issues them: once another one begins, the others are
void, and a CONFIRM that was delayed or replayed starts nothing. In a session only counters larger
than every one heard count. An ACKNOWLEDGE and a REJECT carry the counter of what they answer; the
responder's own counters go on from that of the CONFIRM.

Both ends seek each other: each answers the other's REQUEST. If each has sent a CONFIRM, the session
of the end that configured the circuit wins over one that only resumes it, then the one of the end
with the larger MAC address. Each end's own configuration wins for that end.
"""

from vela.agreement import (
    Agreed,
    Agreement,
    CircuitRequested,
    Closed,
    Datagram,
    Down,
    Event,
    OfferChanged,
    ProbeAnswered,
    Rejected,
    ResolveWanted,
    Unanswered,
    Up,
)
from vela.control import (
    MAX_ADDRESSES,
    Capability,
    CloseReason,
    Confirm,
    Description,
    RejectCode,
    read_header,
)
from vela.cookie import Cookies
from vela.policy import Policy, Rejection
from vela.responder import Responder, Silence
from vela.session import Session, State

__all__ = [
    "MAX_ADDRESSES",
    "Agreed",
    "Agreement",
    "Capability",
    "CircuitRequested",
    "CloseReason",
    "Closed",
    "Confirm",
    "Cookies",
    "Datagram",
    "Description",
    "Down",
    "Event",
    "OfferChanged",
    "Policy",
    "ProbeAnswered",
    "RejectCode",
    "Rejected",
    "Rejection",
    "ResolveWanted",
    "Responder",
    "Session",
    "Silence",
    "State",
    "Unanswered",
    "Up",
    "read_header",
]
