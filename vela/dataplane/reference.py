"""The reference twin of the data path, in plain Python. docs/protocol.md, section 3."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from vela.address import Family
from vela.dataplane.backlog import LEAST_FRAME, Backlog
from vela.dataplane.bundle import Waiting, bundle, bundled, is_bundle
from vela.dataplane.cipher import LOOK_FIRST_S, LOOK_S, Opener, Sealed, Sealer, WorkerPage
from vela.dataplane.contract import POLL_WINDOW_S, Attachment
from vela.dataplane.counters import Slot
from vela.dataplane.echo import SEAL_ROOM, TO_BE_SENT
from vela.dataplane.ecn import CE, ECN_MASK, NOT_ECT, Marker, fold_ecn, is_network_control
from vela.dataplane.frame import (
    ECHO_REPLY,
    ECHO_REQUEST,
    HEADROOM,
    REBUILD_ROOM,
    VERIFICATION_HEADER,
    Decapsulator,
    Dropped,
    Elision,
    Encapsulator,
    Piece,
    Verification,
)
from vela.dataplane.handover import ThreadState
from vela.dataplane.key_page import map_key_page
from vela.dataplane.mss import MssClamper, network_offset
from vela.dataplane.packet_too_big import Limiter, too_big_message
from vela.dataplane.pieces import Cutter, Fragmentation, Joiner
from vela.linux.features import UDP_GRO, UDP_SEGMENT, Feature
from vela.linux.underlay import route_mtu
from vela.wire import (
    DATA_HEADER,
    ETHERNET_HEADER,
    MAX_UDP_PAYLOAD,
    SEAL,
    VIRTIO_HEADER,
    datagram_limit,
)

_SEGMENT_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_TOS = struct.Struct("=i")
_CONTROL_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size) + socket.CMSG_SPACE(_TOS.size)

# Frames share a send, which costs more than the reads of all of them. Every
# kernel with UDP_SEGMENT takes 64 (UDP_MAX_SEGMENTS, Linux 4.18).
BATCH = 64

# Batches between two looks at what the supervisor hands over, and how many datagrams at once.
HANDED_INTERVAL = 8
HANDED_MAX = 16

# Bytes of frames behind which a batch ends where the same thread receives: they fit the sending
# socket, and what comes in does not wait for longer.
POLLED_BATCH = 65536

# The kernel's words for a batch that cannot be cut into datagrams here: larger
# than the route's MTU, or none of any size; net/ipv4/udp.c, udp_send_skb.
_TOO_LARGE = (errno.EINVAL, errno.EMSGSIZE)
_NO_OFFLOAD = errno.EIO

# For so long a refusal is remembered: routes become wider again, and one more costs a
# system call.
REFUSED_S = 2.0

# A connected socket reports what ICMP said of an earlier datagram instead of sending this one.
# Anybody can send that, so one more try may meet the next one.
SEND_TRIES = 4


class Clear(NamedTuple):
    """A datagram as a circuit without encryption sends it."""

    datagram: memoryview


Ancillary = tuple[int, int, bytes]
Outgoing = Clear | Sealed
"""All that leaves; a circuit makes one kind, chosen where it is set up."""


def _wait(sources: select.poll, timeout_s: float | None, states: memoryview) -> set[int]:
    """Wait for one of the sources, with nothing in hand; return the descriptors that are ready."""
    timeout_ms = None if timeout_s is None else timeout_s * 1000
    states[:] = bytes([ThreadState.WAITS]) * len(states)
    try:
        return {fd for fd, _ in sources.poll(timeout_ms)}
    finally:
        states[:] = bytes([ThreadState.FORWARDS]) * len(states)


class PythonDataPlane:
    """Forwards one circuit's frames; see vela.dataplane for the contract."""

    def __init__(self, attachment: Attachment) -> None:
        self._circuit_id = attachment.circuit_id
        self._tap_fd = attachment.tap_fd
        self._receive_socket = attachment.receive_socket
        self._send_socket = attachment.send_socket
        self._destination = attachment.destination
        self._source_address: tuple[Ancillary, ...] = (
            () if attachment.source_address is None else (attachment.source_address,)
        )
        self._divert_socket = attachment.divert_socket
        self._counters = attachment.counters
        self._frame_limit = attachment.frame_limit
        self._route_limit = attachment.datagram_limit
        # Where the TAP's descriptor does not block, reads are plain ones, behind a poll.
        self._nowait = os.RWF_NOWAIT if Feature.RWF_NOWAIT in attachment.features else 0
        # One of an interface that another engine had before. Frames are complete all the same, and
        # the header has nothing to say.
        self._tap_header = VIRTIO_HEADER if attachment.virtio_header else b""
        # Of threads that wait: see egress_until().
        self._egress_states = self._ingress_states = memoryview(bytearray(1))
        self._tap_poll = select.poll()
        self._tap_poll.register(self._tap_fd, select.POLLIN)
        self._receive_poll = select.poll()
        self._receive_poll.register(self._receive_socket, select.POLLIN)
        self._backlog = Backlog()
        # No call but rest() waits.
        self._polled = False
        self._segments = Feature.UDP_SEGMENT in attachment.features
        macs = (attachment.local_mac, attachment.remote_mac)
        leave = attachment.partial_checksums
        self._encapsulator = Encapsulator(
            self._circuit_id, *macs, attachment.elision, partial_checksums=leave
        )
        self._decapsulator = Decapsulator(*macs, self._frame_limit, partial_checksums=leave)

        self._seal = 0 if attachment.key_page is None else SEAL
        self._fragmentation = attachment.fragmentation
        # So that frames of this worker are not taken for those of the one before it.
        first = int.from_bytes(os.urandom(4))
        self._cutter = Cutter(self._circuit_id, first, attachment.queue)
        self._too_big_limiter = Limiter() if attachment.packet_too_big else None
        self._joiner = Joiner(self._frame_limit)
        self._clamper = None
        if attachment.mss_clamp is not None:
            self._clamper = MssClamper(attachment.mss_clamp, self._seal)
        self._elides = attachment.elision is not Elision.NEVER
        self._marker = Marker(attachment.dscp, carry_ecn=attachment.carry_ecn)
        self._tos_option = (
            (socket.IPPROTO_IP, socket.IP_TOS)
            if attachment.outer_ipv4
            else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        )

        # As many as the largest batch so far had frames: most circuits need few.
        self._frames: list[bytearray] = []
        self._frame_views: list[memoryview] = []
        self._frame_targets: list[list[memoryview]] = []
        self._add_frame_buffer()
        # Larger datagrams are fragmented, as far as is known.
        self._datagram_limit = self._route_limit
        # Larger datagrams are sent one by one.
        self._segment_limit = self._route_limit if self._segments else 0
        # Monotonic; 0: nothing is. Where nothing is segmented, no refusal tells that the route
        # has become narrower: so the kernel is asked each time.
        self._refused_until = 0.0 if self._segments else time.monotonic()

        # An encrypted circuit has these, and then sends nothing but what a sealer made.
        self._sealer: Sealer | None = None
        self._answer_sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._bundle_limit = 0
        if attachment.key_page is not None:
            page = WorkerPage(memoryview(map_key_page(attachment.key_page)))
            self._sealer = Sealer(page, self._circuit_id, acknowledges=True)
            self._answer_sealer = Sealer(page, self._circuit_id)
            self._opener = Opener(page, attachment.sequences)
            self._bundle_limit = attachment.bundle_limit
            self._receive_poll.register(self._divert_socket, select.POLLIN)
            self._batches = 0

        self._received = bytearray(REBUILD_ROOM + MAX_UDP_PAYLOAD)
        self._received_view = memoryview(self._received)
        self._received_target = [self._received_view[REBUILD_ROOM:]]

    def egress_until(self, stop: memoryview, states: memoryview, /) -> None:
        self._egress_states = states[:1]
        while not stop[0]:
            self.egress()

    def ingress_until(self, stop: memoryview, states: memoryview, /) -> None:
        self._ingress_states = states[1:]
        while not stop[0]:
            self.ingress()

    def poll_until(self, stop: memoryview, states: memoryview, /) -> None:
        self._ingress_states = states
        self._polled = True
        counters = self._counters
        # So that there may be no room to send, until it was looked for.
        has_sent = True
        until = time.monotonic() + POLL_WINDOW_S
        while not stop[0]:
            received, sent = counters[Slot.RX_FRAMES], counters[Slot.TX_FRAMES]
            self.ingress()
            # Frames that come in must not wait for a send.
            has_sent = has_sent and not self._has_room()
            if has_sent:
                counters[Slot.EGRESS_PROGRESS] += 1
            else:
                self.egress()
                has_sent = counters[Slot.TX_FRAMES] != sent
            # Echo requests are no frames: each circuit has one a second.
            if counters[Slot.RX_FRAMES] != received or counters[Slot.TX_FRAMES] != sent:
                until = time.monotonic() + POLL_WINDOW_S
            elif time.monotonic() >= until:
                self._rest(has_sent=has_sent)
            else:
                # Whoever else is on this CPU: where that is the program that a frame was for, it
                # answers sooner.
                os.sched_yield()

    def _has_room(self) -> bool:
        sending = select.poll()
        sending.register(self._send_socket, select.POLLOUT)
        return bool(sending.poll(0))

    def _rest(self, *, has_sent: bool) -> None:
        """Wait for whatever there is to do; has_sent: for room to send, not for frames of the TAP.

        What is wrong with the TAP or a socket the next call says.
        """
        sources = select.poll()
        sources.register(self._receive_socket, select.POLLIN)
        if has_sent:
            sources.register(self._send_socket, select.POLLOUT)
        else:
            sources.register(self._tap_fd, select.POLLIN)
        if self._opener is None:
            _wait(sources, None, self._ingress_states)
            return
        sources.register(self._divert_socket, select.POLLIN)
        ready = _wait(sources, self._look_s(self._opener), self._ingress_states)
        if self._divert_socket.fileno() in ready:
            self._look(self._opener)
            self._take_handed()

    def egress(self) -> None:
        counters = self._counters
        counters[Slot.EGRESS_PROGRESS] += 1
        if self._refused_until and self._refused_until <= time.monotonic():
            self._renew_limits()
        frames, views, targets = self._frames, self._frame_views, self._frame_targets
        tap_fd, frame_limit, header = self._tap_fd, self._frame_limit, len(self._tap_header)
        encapsulate = self._encapsulator.encapsulate
        waiting: list[Waiting] = []
        octets = elided = sent = 0
        taken = taken_octets = 0
        try:
            if self._sealer is not None:
                self._sealer.look()
            length = os.preadv(tap_fd, targets[taken], -1, self._nowait)
        except BlockingIOError:
            self._backlog.ran_empty()
            # Asked for frames first: under load there are some.
            if not self._polled:
                # The keys of an encrypted circuit are looked after, too.
                timeout_s = None if self._sealer is None else LOOK_S
                _wait(self._tap_poll, timeout_s, self._egress_states)
            return
        while True:
            length -= header
            if ETHERNET_HEADER <= length <= frame_limit:
                end = HEADROOM + length
                if self._clamper is not None:
                    self._clamp_egress(self._clamper, frames[taken], end)
                try:
                    if length >= LEAST_FRAME:
                        self._relieve(frames[taken], end)
                    frame_tos = self._marker.outer_tos(frames[taken], HEADROOM, end)
                    start, is_elided = encapsulate(frames[taken], HEADROOM, end)
                    datagram = views[taken][start:end]
                    if len(datagram) + self._seal <= self._datagram_limit:
                        waiting.append(Waiting(datagram, frame_tos, small=True))
                    else:
                        if self._too_big_limiter is not None:
                            self._tell_sender(self._too_big_limiter, frames[taken], start, end)
                        fragments = self._fragments(datagram)
                        waiting += [Waiting(each, frame_tos) for each in fragments]
                except Dropped as dropped:
                    counters[dropped.slot] += 1
                else:
                    sent += 1
                    octets += length
                    elided += is_elided
            else:
                counters[Slot.TX_ERRORS] += 1
            taken += 1
            taken_octets += length
            if taken == BATCH or (self._polled and taken_octets >= POLLED_BATCH):
                break
            if taken == len(frames):
                self._add_frame_buffer()
            try:
                length = os.preadv(tap_fd, targets[taken], -1, self._nowait)
            except BlockingIOError:
                self._backlog.ran_empty()
                break
        counters[Slot.TX_FRAMES] += sent
        counters[Slot.TX_BYTES] += octets
        counters[Slot.TX_ELIDED] += elided
        if self._bundle_limit:
            waiting = [*bundle(waiting, min(self._bundle_limit, self._datagram_limit))]
        self._send_all(self._prepare(waiting), waiting)

    def _relieve(self, frame: bytearray, end: int) -> None:
        """Let the sender of a frame that is read now know of a queue that stands, by a mark.

        Raises Dropped where it would not see that.
        """
        packet = network_offset(frame, HEADROOM, end)
        if packet is None or is_network_control(frame, packet, end):
            return
        if not self._backlog.is_due(int(time.monotonic() * 1000)):
            return
        try:
            fold_ecn(frame, HEADROOM, end, CE)
        except Dropped as dropped:
            raise Dropped(Slot.TX_BACKLOG) from dropped
        self._counters[Slot.TX_MARKED] += 1

    def _fragments(self, datagram: memoryview) -> list[memoryview]:
        """Return what is sent in place of a datagram that is too large. Raises Dropped."""
        if self._fragmentation is Fragmentation.NEVER:
            raise Dropped(Slot.TX_TOO_LARGE)
        if self._fragmentation is Fragmentation.BY_IP:
            return [datagram]
        pieces = self._cutter.cut(datagram, self._datagram_limit - self._seal)
        if pieces:
            self._counters[Slot.TX_PIECED] += 1
        return pieces or [datagram]

    def _tell_sender(self, limiter: Limiter, frame: bytearray, start: int, end: int) -> None:
        """Tell the sender of a packet that is too large what would fit, if it is to hear of it.

        start: of the datagram; of an elided Ethernet header it has overwritten the last byte.
        """
        elided = start > HEADROOM
        packet = HEADROOM + ETHERNET_HEADER if elided else network_offset(frame, HEADROOM, end)
        if packet is None or not limiter.allows(time.monotonic()):
            return
        mtu = self._datagram_limit - self._seal - (packet - start)
        message = too_big_message(bytes(frame[HEADROOM:packet]), frame[packet:end], mtu)
        if message is None:
            return
        limiter.take()
        # The interface may just be going down.
        with suppress(OSError):
            self._write(memoryview(message))
            self._counters[Slot.TX_TOO_BIG_SENT] += 1

    def _clamp_egress(self, clamper: MssClamper, frame: bytearray, end: int) -> None:
        elided = self._encapsulator.can_elide(frame, HEADROOM, end)
        if clamper.clamp(frame, HEADROOM, end, elided=elided):
            self._counters[Slot.TX_MSS_CLAMPED] += 1

    def _add_frame_buffer(self) -> None:
        # One byte more than a frame may have shows a frame that was cut off.
        frame = bytearray(HEADROOM + self._frame_limit + 1)
        view = memoryview(frame)
        self._frames.append(frame)
        self._frame_views.append(view)
        target = view[HEADROOM:]
        header = memoryview(bytearray(self._tap_header))
        self._frame_targets.append([header, target] if self._tap_header else [target])

    def _prepare(self, waiting: list[Waiting]) -> list[Outgoing]:
        """Return what may leave: the datagrams as they are, or sealed on an encrypted circuit."""
        if self._sealer is None:
            return [Clear(memoryview(each.datagram)) for each in waiting]
        sealed = self._sealer.seal([each.datagram for each in waiting])
        self._counters[Slot.TX_NO_KEY] += sum(each.frames for each in waiting[len(sealed) :])
        return [*sealed]

    def _send_all(self, outgoing: Sequence[Outgoing], waiting: Sequence[Waiting]) -> None:
        """Send datagrams in order, runs of one size and one TOS byte together.

        A smaller one may end a run. waiting: what each was.
        """
        datagrams = [each.datagram for each in outgoing]
        first = 0
        while first < len(datagrams):
            size = total = len(datagrams[first])
            behind = first + 1
            if size <= self._segment_limit:
                while behind < len(datagrams):
                    length = len(datagrams[behind])
                    if length > size or total + length > MAX_UDP_PAYLOAD:
                        break
                    if waiting[behind].tos != waiting[first].tos:
                        break
                    total += length
                    behind += 1
                    if length < size:
                        break
            self._send_run(outgoing[first:behind], size, waiting[first:behind])
            first = behind

    def _send_run(self, run: Sequence[Outgoing], size: int, waiting: Sequence[Waiting]) -> None:
        """Send datagrams of size bytes each; the last one may be shorter."""
        extras, tos = self._source_address, waiting[0].tos
        if tos != self._marker.default:
            extras = ((*self._tos_option, _TOS.pack(tos)), *extras)
        if len(run) > 1 and self._send_segmented(run, size, extras):
            return
        counters = self._counters
        for datagram, was in zip(run, waiting, strict=True):
            if not self._send_one(datagram, extras):
                counters[Slot.TX_ERRORS] += was.frames
            elif len(datagram.datagram) > self._datagram_limit:
                counters[Slot.TX_FRAGMENTED] += 1

    def _send_segmented(
        self, run: Sequence[Outgoing], size: int, extras: tuple[Ancillary, ...]
    ) -> bool:
        """Let the kernel cut one buffer into datagrams; False: nothing was sent."""
        segments = (socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(size))
        pieces = [each.datagram for each in run]
        error = 0
        for _ in range(SEND_TRIES):
            try:
                self._send_socket.sendmsg(pieces, (segments, *extras), 0, self._destination)
            except OSError as err:
                error = err.errno or 0
            else:
                return True
            if self._refuses_segments(error, size):
                break
        self._limit_segments(error, size)
        return False

    def _refuses_segments(self, error: int, size: int) -> bool:
        """Tell whether it is segments of this size that the kernel refuses.

        If not, it reports what ICMP said of an earlier datagram (EMSGSIZE is
        among that), instead of sending this.
        """
        return error == _NO_OFFLOAD or (error in _TOO_LARGE and size > self._known_route_limit())

    def _limit_segments(self, error: int, size: int) -> None:
        """Remember a refusal, so that not every batch finds it out again."""
        if error == _NO_OFFLOAD:
            self._segment_limit = 0
        elif error in _TOO_LARGE:
            # The route has become narrower: larger ones are fragmented, and count.
            limit = self._ask_route_limit()
            if not 0 < limit < size:
                limit = size - 1
            self._segment_limit = self._datagram_limit = limit
        else:
            return
        self._refused_until = time.monotonic() + REFUSED_S

    def _renew_limits(self) -> None:
        """Forget refusals that are old; what is known of the route stays true."""
        limit = min(self._ask_route_limit() or self._route_limit, self._route_limit)
        self._datagram_limit = limit
        self._segment_limit = limit if self._segments else 0
        again = limit < self._route_limit or not self._segments
        self._refused_until = time.monotonic() + REFUSED_S if again else 0.0

    def _known_route_limit(self) -> int:
        """Return the same; where the kernel does not tell, more than any datagram has."""
        return self._ask_route_limit() or MAX_UDP_PAYLOAD

    def _ask_route_limit(self) -> int:
        """Return the largest datagram that the route takes in one piece, by what the kernel knows.

        0 where it does not tell: of a socket that is not connected, or goes by its interface.
        """
        family = Family.IPV4 if self._send_socket.family == socket.AF_INET else Family.IPV6
        try:
            mtu = route_mtu(self._send_socket)
        except OSError:
            return 0
        return max(datagram_limit(mtu, family), 0)

    def _send_one(self, outgoing: Outgoing, extras: tuple[Ancillary, ...], flags: int = 0) -> bool:
        """Send a datagram; False: the kernel would not."""
        for _ in range(SEND_TRIES):
            try:
                self._send_socket.sendmsg((outgoing.datagram,), extras, flags, self._destination)
            except OSError:
                continue
            return True
        return False

    def ingress(self) -> None:
        counters = self._counters
        counters[Slot.INGRESS_PROGRESS] += 1
        if self._opener is None:
            try:
                length, ancillary, _, _ = self._receive_socket.recvmsg_into(
                    self._received_target, _CONTROL_SPACE, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                if not self._polled:
                    _wait(self._receive_poll, None, self._ingress_states)
                return
        else:
            received = self._receive_sealed(self._opener)
            if received is None:
                return
            length, ancillary = received
        size = max(length, 1)
        ecn = NOT_ECT
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                size = _GRO_SIZE.unpack(value)[0]
            elif (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS):
                ecn = value[0] & ECN_MASK  # one byte (net/ipv4/ip_sockglue.c, ip_cmsg_recv_tos)
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_TCLASS):
                ecn = _TOS.unpack(value)[0] & ECN_MASK
        if not length:
            counters[Slot.RX_SHORT] += 1
        self._take(REBUILD_ROOM + length, size, ecn)

    def _receive_sealed(self, opener: Opener) -> tuple[int, list[tuple[int, int, bytes]]] | None:
        """Wait for datagrams on an encrypted circuit; None: there was something else to do."""
        self._batches += 1
        if self._batches % HANDED_INTERVAL == 0:
            self._take_handed()
        try:
            length, ancillary, _, _ = self._receive_socket.recvmsg_into(
                self._received_target, _CONTROL_SPACE, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            # Under load there are datagrams, and no poll.
            wait_s = self._look_s(opener)
            if self._polled:
                return None
            ready = _wait(self._receive_poll, wait_s, self._ingress_states)
            if self._divert_socket.fileno() in ready:
                self._look(opener)
                self._take_handed()
            return None
        # Behind the wait: a key that was installed meanwhile is in force.
        self._look(opener)
        return length, ancillary

    def _look(self, opener: Opener) -> None:
        """Take up keys that are new, and forget those that were wiped.

        Also the one that answers are sealed with, which may be wanted by nobody.
        """
        opener.look()
        if self._answer_sealer is not None:
            self._answer_sealer.look()

    def _look_s(self, opener: Opener) -> float:
        """Return how long nothing may look after keys, which is done here."""
        self._look(opener)
        return LOOK_S if opener.receives else LOOK_FIRST_S

    def _take_handed(self) -> None:
        """Take what the supervisor hands over.

        That is echo requests, and sealed datagrams that came to it or to
        another circuit's worker, which cannot open them.
        """
        for _ in range(HANDED_MAX):
            try:
                length = self._divert_socket.recv_into(
                    self._received_target[0], 0, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            if not length:
                return
            if self._received[REBUILD_ROOM] == TO_BE_SENT:
                self._ask(REBUILD_ROOM, REBUILD_ROOM + length)
            else:
                self._take(REBUILD_ROOM + length, length, NOT_ECT)

    def _ask(self, start: int, end: int) -> None:
        """Send an echo request that the supervisor cannot seal. See vela.dataplane.echo."""
        start += SEAL_ROOM
        if end - start < VERIFICATION_HEADER:
            self._counters[Slot.RX_SHORT] += 1
            return
        request = self._prepare_answer(self._received_view[start:end])
        if request is None:
            self._counters[Slot.RX_NO_KEY] += 1
        else:
            self._send_one(request, self._source_address, socket.MSG_DONTWAIT)

    def _take(self, behind: int, size: int, ecn: int) -> None:
        """Take datagrams of size bytes each from REBUILD_ROOM on; the last one may be shorter.

        ecn: of their outer headers. GRO joins none that differ in it.
        """
        counters = self._counters
        data, view = self._received, self._received_view
        circuit_id, decapsulate = self._circuit_id, self._decapsulator.decapsulate
        frames = octets = elided = 0
        end = behind
        # In order: a rebuilt header overwrites the end of the datagram before.
        for start in range(REBUILD_ROOM, behind, size):
            end = min(start + size, behind)
            # Of the clear datagram, which an encrypted one holds.
            inner, inner_end = start, end
            if data[start] != circuit_id:
                # UDP GRO joins datagrams of several circuits that share a
                # sending port, and all come here: docs/protocol.md, 3.4.
                self._divert(start, end)
                continue
            try:
                if self._opener is not None:
                    inner, inner_end = self._opener.open_datagram(data, start, end)
                    # Also without agreement: a worker may be older than what its circuit agreed on.
                    if is_bundle(data, inner, inner_end):
                        self._take_bundle(inner, inner_end, ecn)
                        continue
                frame, is_elided = decapsulate(data, inner, inner_end)
                fold_ecn(data, frame, inner_end, ecn)
                if self._clamper is not None:
                    self._clamp_ingress(self._clamper, data, frame, inner_end, is_elided)
                self._write(view[frame:inner_end])
            except Dropped as dropped:
                counters[dropped.slot] += 1
            except Verification:
                self._verify(inner, inner_end)
            except Piece:
                self._take_piece(inner, inner_end, ecn)
            except OSError:
                # EIO: the interface is down (drivers/net/tun.c, tun_get_user).
                counters[Slot.RX_INTERFACE_DOWN] += 1
            else:
                frames += 1
                octets += inner_end - frame
                elided += is_elided
        counters[Slot.RX_FRAMES] += frames
        counters[Slot.RX_BYTES] += octets
        counters[Slot.RX_ELIDED] += elided

    def _take_bundle(self, start: int, end: int, ecn: int) -> None:
        """Take the frames of a bundle, in order: see _take(). Raises Dropped."""
        counters, data = self._counters, self._received
        for inner, inner_end in bundled(data, start, end):
            try:
                self._take_frame(data, inner, inner_end, ecn)
            except Dropped as dropped:
                counters[dropped.slot] += 1
            except (Verification, Piece):
                # In a bundle there are only frames.
                counters[Slot.RX_RESERVED] += 1
            except OSError:
                counters[Slot.RX_INTERFACE_DOWN] += 1

    def _take_frame(
        self, data: bytearray, start: int, end: int, ecn: int, *, joined: bool = False
    ) -> None:
        """Take the clear datagram at data[start:end], which is to be a frame, and count it.

        joined: it came in pieces. Raises what decapsulate() raises, and OSError.
        """
        counters = self._counters
        frame, is_elided = self._decapsulator.decapsulate(data, start, end)
        counters[Slot.RX_JOINED] += joined
        fold_ecn(data, frame, end, ecn)
        if self._clamper is not None:
            self._clamp_ingress(self._clamper, data, frame, end, is_elided)
        self._write(memoryview(data)[frame:end])
        counters[Slot.RX_FRAMES] += 1
        counters[Slot.RX_BYTES] += end - frame
        counters[Slot.RX_ELIDED] += is_elided

    def _write(self, frame: memoryview) -> None:
        """Write a frame to the TAP. Raises OSError."""
        if self._tap_header:
            os.writev(self._tap_fd, (self._tap_header, frame))
        else:
            os.write(self._tap_fd, frame)

    def _take_piece(self, start: int, end: int, ecn: int) -> None:
        """Take a piece, and the frame that it completes."""
        counters, joiner = self._counters, self._joiner
        try:
            joined = joiner.take(self._received, start, end, ecn, time.monotonic())
            if joined is not None:
                data, ecn = joined
                self._take_frame(data, REBUILD_ROOM, len(data), ecn, joined=True)
        except Dropped as dropped:
            counters[dropped.slot] += 1
        except (Verification, Piece):
            # An answer would be too large for the path; none within another.
            counters[Slot.RX_RESERVED] += 1
        except OSError:
            counters[Slot.RX_INTERFACE_DOWN] += 1
        counters[Slot.RX_INCOMPLETE] += joiner.given_up
        joiner.given_up = 0

    def _clamp_ingress(
        self, clamper: MssClamper, data: bytearray, start: int, end: int, is_elided: bool
    ) -> None:
        elided = is_elided and self._elides
        if clamper.clamp(data, start, end, elided=elided):
            self._counters[Slot.RX_MSS_CLAMPED] += 1

    def _verify(self, start: int, end: int) -> None:
        """Answer an in-circuit echo request, in place. docs/protocol.md, section 5."""
        counters = self._counters
        if end - start < VERIFICATION_HEADER:
            counters[Slot.RX_SHORT] += 1
            return
        message = start + DATA_HEADER + 1
        if self._received[message] == ECHO_REQUEST:
            self._received[message] = ECHO_REPLY
            answer = self._prepare_answer(self._received_view[start:end])
            if answer is None:
                counters[Slot.RX_NO_KEY] += 1
                return
            # Frames are more urgent than an answer, which a full socket would have to wait for.
            self._send_one(answer, self._source_address, socket.MSG_DONTWAIT)
            counters[Slot.RX_VERIFICATIONS] += 1
        elif self._received[message] == ECHO_REPLY:
            self._divert(start, end)
        else:
            counters[Slot.RX_RESERVED] += 1

    def _prepare_answer(self, datagram: memoryview) -> Outgoing | None:
        if self._answer_sealer is None:
            return Clear(datagram)
        sealed = self._answer_sealer.seal([datagram])
        return sealed[0] if sealed else None

    def _divert(self, start: int, end: int) -> None:
        """Give a datagram to the supervisor, which knows whose it is."""
        try:
            self._divert_socket.send(self._received_view[start:end])
        except OSError:
            self._counters[Slot.RX_CONGESTED] += 1
