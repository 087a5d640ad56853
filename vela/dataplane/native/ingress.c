/* Frames UDP to TAP. */
#define _GNU_SOURCE
#include "ingress.h"

#include <errno.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"

#ifndef UDP_GRO
#define UDP_GRO 104 /* include/uapi/linux/udp.h, Linux 5.0 */
#endif

static size_t receive_slots(const struct ingress *self)
{
	return self->gro ? RECEIVE_SLOTS : RECEIVE_SLOTS_SINGLE;
}

bool ingress_init(struct ingress *self)
{
	self->buffer = malloc(receive_slots(self) * RECEIVE_SLOT);
	self->coalesced.count = 0;
	self->coalesced.partial_checksum = false;
	if (self->buffer && joiner_init(&self->joiner, self->encapsulation.frame_limit))
		return true;
	ingress_free(self);
	return false;
}

void ingress_free(struct ingress *self)
{
	free(self->buffer);
	joiner_free(&self->joiner);
	opener_close(&self->opener);
	sealer_close(&self->sealer);
	self->buffer = NULL;
}

static bool write_pieces(struct ingress *self, const struct iovec *pieces, size_t count)
{
	ssize_t written;

	do
		written = self->io->writev(self->tap_fd, pieces, (int)count);
	while (written < 0 && errno == EINTR);
	return written >= 0;
}

/* Tell the kernel what is left to do to a single frame: nothing, or the checksum that its sender left
 * to the outer one. */
static void describe(const struct ingress *self, const struct frame *frame,
		     struct virtio_header *header)
{
	struct transport transport;

	if (!self->partial_checksums || !frame->elided || frame->finished ||
	    !find_transport(frame->rest, frame->rest_length, &transport) ||
	    !is_checksum_partial(frame->rest, &transport))
		return;
	header->flags = VIRTIO_NEEDS_CHECKSUM;
	header->checksum_start = (uint16_t)(ETHERNET_HEADER + transport.offset);
	header->checksum_offset = (uint16_t)(transport.checksum - transport.offset);
}

static void write_frame(struct ingress *self, const struct frame *frame)
{
	struct virtio_header header = {0};
	uint8_t head[sizeof(header) + ETHERNET_HEADER];
	uint64_t *counters = self->counters;

	if (self->virtio_header)
		describe(self, frame, &header);
	memcpy(head, &header, sizeof(header));
	memcpy(head + sizeof(header), frame->link, ETHERNET_HEADER);
	struct iovec pieces[2] = {
		{head + sizeof(header) - self->virtio_header,
		 self->virtio_header + ETHERNET_HEADER},
		{(void *)frame->rest, frame->rest_length},
	};
	if (!write_pieces(self, pieces, 2)) {
		/* EIO: the interface is down (drivers/net/tun.c, tun_get_user). */
		counters[RX_INTERFACE_DOWN]++;
		return;
	}
	counters[RX_FRAMES]++;
	counters[RX_BYTES] += ETHERNET_HEADER + frame->rest_length;
	counters[RX_ELIDED] += frame->elided;
}

/* Write two or more frames as one; false where that did not go, and each by itself may. */
static bool write_coalesced(struct ingress *self, struct coalesced *coalesced)
{
	struct iovec pieces[1 + TRAIN_MAX];
	uint64_t *counters = self->counters;

	if (!write_pieces(self, pieces, coalesce_finish(coalesced, pieces))) {
		/* Remembered, though the kernel took the offload. */
		if (errno == EINVAL)
			*(coalesced->transport.tcp ? &self->coalesce_tcp : &self->coalesce_udp) = false;
		return false;
	}
	counters[RX_FRAMES] += coalesced->count;
	for (size_t i = 0; i < coalesced->count; i++) {
		counters[RX_BYTES] += ETHERNET_HEADER + coalesced->frames[i].rest_length;
		counters[RX_ELIDED] += coalesced->frames[i].elided;
	}
	return true;
}

void ingress_flush(struct ingress *self)
{
	struct coalesced *coalesced = &self->coalesced;

	if (coalesced->count > 1 && !write_coalesced(self, coalesced)) {
		for (size_t i = 0; i < coalesced->count; i++)
			write_frame(self, &coalesced->frames[i]);
	} else if (coalesced->count == 1) {
		write_frame(self, &coalesced->frames[0]);
	}
	coalesced->count = 0;
	self->joiner.epoch++;
}

/* Give a datagram to the supervisor, which knows whose it is. */
static void divert(struct ingress *self, const uint8_t *datagram, size_t length)
{
	if (self->io->send(self->divert_fd, datagram, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		self->counters[RX_CONGESTED]++;
}

/* Tell whether it was sent. */
static bool answer(struct ingress *self, uint8_t *datagram, size_t length)
{
	struct iovec piece = {datagram, length};
	struct msghdr message = {
		.msg_name = self->destination_length ? &self->destination : NULL,
		.msg_namelen = self->destination_length,
		.msg_iov = &piece,
		.msg_iovlen = 1,
		.msg_control = self->source_address.length ? self->source_address.space : NULL,
		.msg_controllen = self->source_address.length,
	};

	/* Frames are more urgent than an answer, which a full socket would have to wait for. */
	return self->io->sendmsg(self->send_fd, &message, MSG_DONTWAIT) >= 0;
}

/* Seal an answer, or a request, in its own place: there is room for it. False: it cannot be sent. */
static bool seal_answer(struct ingress *self, uint8_t **datagram, size_t *length)
{
	size_t count = 1, text = *length - CIRCUIT_ID;
	struct sealed sealed;

	switch (sealer_seal(&self->sealer, *datagram - (TEXT - CIRCUIT_ID), &text, &count, &sealed)) {
	case SEALED:
		*datagram = sealed.datagram;
		*length = sealed.length;
		return true;
	case REUSED:
		self->failure = EKEYREVOKED;
		break;
	case NO_KEY:
		break;
	}
	self->counters[RX_NO_KEY]++;
	return false;
}

/* Answer an in-circuit echo request, in place. docs/protocol.md, section 5. */
static void verify(struct ingress *self, uint8_t *datagram, size_t length)
{
	int tries = 2; /* a connected socket first reports what ICMP said of an earlier datagram */

	if (length < VERIFICATION_HEADER) {
		self->counters[RX_SHORT]++;
		return;
	}
	uint8_t *type = datagram + DATA_HEADER + 1;
	switch (*type) {
	case ECHO_REQUEST:
		*type = ECHO_REPLY;
		if (self->sealer.page && !seal_answer(self, &datagram, &length))
			break;
		while (tries-- && !answer(self, datagram, length))
			;
		self->counters[RX_VERIFICATIONS]++;
		break;
	case ECHO_REPLY:
		divert(self, datagram, length);
		break;
	default:
		self->counters[RX_RESERVED]++;
	}
}

/* Return the IP packet of a frame, behind any tags, and its length; NULL: it has none. */
static uint8_t *packet_of(const struct frame *frame, size_t *length)
{
	size_t tags = 0;

	if (!frame->elided) {
		/* Its link header stands before the rest. */
		size_t network = network_offset(frame->link, ETHERNET_HEADER + frame->rest_length);
		if (network == 0)
			return NULL;
		tags = network - ETHERNET_HEADER;
	}
	*length = frame->rest_length - tags;
	/* The receive buffer's, and not const but for its readers. */
	return (uint8_t *)frame->rest + tags;
}

/* Lower the MSS that a frame announces to hosts behind the TAP. */
static void clamp(struct ingress *self, struct frame *frame)
{
	size_t length, before = DATA_HEADER + (self->sealer.page ? SEAL : 0);
	uint8_t *packet = packet_of(frame, &length);
	struct transport transport;
	struct syn syn;

	if (packet == NULL)
		return;
	if (!frame->elided) {
		before += ESCAPE + ETHERNET_HEADER + frame->rest_length - length;
	} else if (self->encapsulation.elision == ELISION_NEVER) {
		before += ESCAPE + ETHERNET_HEADER;
	}
	if (!find_syn(packet, length, &syn))
		return;
	bool partial = self->partial_checksums && frame->elided &&
		       find_transport(packet, length, &transport) &&
		       is_checksum_partial(packet, &transport);
	if (!lower_mss(&syn, mss_limit(&self->mss_clamp, &syn, before), partial))
		return;
	frame->finished = !partial;
	self->counters[RX_MSS_CLAMPED]++;
}

/* Bring a congestion mark of the outer header into the frame; false: it is to be dropped. */
static bool fold(const struct frame *frame, uint8_t outer_ecn)
{
	size_t length;

	/* The other two values change nothing. */
	if (outer_ecn != ECN_CE && outer_ecn != ECN_ECT1)
		return true;
	uint8_t *packet = packet_of(frame, &length);
	return packet == NULL || fold_ecn(packet, length, outer_ecn);
}

static void take_frame(struct ingress *self, struct frame *frame)
{
	struct coalesced *coalesced = &self->coalesced;

	if (mss_clamp_is_on(&self->mss_clamp))
		clamp(self, frame);

	if (self->virtio_header == 0) {
		write_frame(self, frame);
		return;
	}
	if (coalesced->count && coalesce_add(coalesced, frame)) {
		if (!coalesced->open)
			ingress_flush(self);
		return;
	}
	ingress_flush(self);
	coalesced->partial_checksum = self->partial_checksums && frame->elided;
	coalesce_start(coalesced, frame);
	if (coalesced->open && !(coalesced->transport.tcp ? self->coalesce_tcp : self->coalesce_udp))
		coalesced->open = false;
	if (!coalesced->open)
		ingress_flush(self);
}

/* Open a datagram of an encrypted circuit, in place; false where it goes no further. */
static bool open_sealed(struct ingress *self, uint8_t **datagram, size_t *length)
{
	static const uint8_t slots[] = {
		[OPENED_SHORT] = RX_SHORT, [CLEAR] = RX_CLEAR,	     [OPENED_NO_KEY] = RX_NO_KEY,
		[REPLAYED] = RX_REPLAYED,  [BAD_TAG] = RX_BAD_TAG,
	};
	enum opened opened = opener_open(&self->opener, datagram, length);

	if (opened == OPENED)
		return true;
	self->counters[slots[opened]]++;
	return false;
}

/* How a datagram came: by itself, in pieces, or with others in one. */
enum carried { BY_ITSELF, IN_PIECES, BUNDLED };

static void take_clear(struct ingress *self, uint8_t *datagram, size_t length, uint8_t ecn,
		       enum carried carried);

static uint64_t now_ms(const struct ingress *self)
{
	struct timespec now;

	self->io->clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Take a piece, and the frame that it completes. */
static void take_piece(struct ingress *self, const uint8_t *datagram, size_t length)
{
	static const uint8_t slots[] = {
		[PIECE_SHORT] = RX_SHORT,
		[PIECE_MALFORMED] = RX_MALFORMED,
		[PIECE_OVERSIZED] = RX_OVERSIZED,
		[PIECE_DUPLICATE] = RX_DUPLICATE,
	};
	uint8_t *whole;
	size_t whole_length;

	if (joiner_overwrites(&self->joiner, datagram, length))
		ingress_flush(self);
	enum joining joining = joiner_take(&self->joiner, datagram, length, self->outer_ecn, now_ms(self), &whole, &whole_length,
					   &self->counters[RX_INCOMPLETE]);
	switch (joining) {
	case PIECE_TAKEN:
		break;
	case PIECE_COMPLETES:
		take_clear(self, whole, whole_length, joiner_ecn(&self->joiner, datagram), IN_PIECES);
		/* Behind it, as what was there before it may just have been written. */
		joiner_keep(&self->joiner, datagram);
		break;
	default:
		self->counters[slots[joining]]++;
	}
}

/* Take the frames of a bundle. docs/protocol.md, 3.10. */
static void take_bundle(struct ingress *self, uint8_t *datagram, size_t length)
{
	size_t start = CIRCUIT_ID + BUNDLE;

	do {
		size_t text = length - start < BUNDLED_LENGTH ? 0 : get16(datagram + start);
		start += BUNDLED_LENGTH;
		if (text == 0 || text > length - start) {
			/* Where the next one begins is not known. */
			self->counters[RX_MALFORMED]++;
			return;
		}
		take_clear(self, datagram + start - CIRCUIT_ID, CIRCUIT_ID + text, self->outer_ecn, BUNDLED);
		start += text;
	} while (start < length);
}

static void take_datagram(struct ingress *self, uint8_t *datagram, size_t length)
{
	if (length && datagram[0] != self->encapsulation.circuit_id) {
		/* UDP GRO joins datagrams of several circuits that share a sending port, and all come
		 * here: docs/protocol.md, 3.4. */
		divert(self, datagram, length);
		return;
	}
	if (self->opener.page) {
		if (!open_sealed(self, &datagram, &length))
			return;
		/* Also without agreement: a worker may be older than what its circuit agreed on. */
		if (length > CIRCUIT_ID && datagram[CIRCUIT_ID] == BUNDLE_BYTE) {
			take_bundle(self, datagram, length);
			return;
		}
	}
	take_clear(self, datagram, length, self->outer_ecn, BY_ITSELF);
}

/* Take a datagram as a circuit without encryption sends it. ecn: of its outer header. */
static void take_clear(struct ingress *self, uint8_t *datagram, size_t length, uint8_t ecn,
		       enum carried carried)
{
	uint64_t *counters = self->counters;
	struct frame frame;

	switch (decapsulate(&self->encapsulation, datagram, length, &frame)) {
	case FRAME:
		counters[RX_JOINED] += carried == IN_PIECES;
		if (fold(&frame, ecn))
			take_frame(self, &frame);
		else
			counters[RX_ECN]++;
		break;
	case VERIFICATION:
		/* One in pieces would be answered by one that is too large for the path; in a bundle there are only
		 * frames. */
		if (carried != BY_ITSELF)
			counters[RX_RESERVED]++;
		else
			verify(self, datagram, length);
		break;
	case PIECE:
		/* None within another, nor in a bundle. */
		if (carried != BY_ITSELF)
			counters[RX_RESERVED]++;
		else
			take_piece(self, datagram, length);
		break;
	case TOO_SHORT:
		counters[RX_SHORT]++;
		break;
	case RESERVED:
		counters[RX_RESERVED]++;
		break;
	case OVERSIZED:
		counters[RX_OVERSIZED]++;
		break;
	case MALFORMED:
		counters[RX_MALFORMED]++;
		break;
	}
}

void ingress_datagrams(struct ingress *self, uint8_t *data, size_t length, size_t size)
{
	if (length == 0) {
		self->counters[RX_SHORT]++;
		return;
	}
	for (size_t start = 0; start < length; start += size) {
		size_t left = length - start;
		take_datagram(self, data + start, left < size ? left : size);
	}
}

/* Return the size that the kernel says the joined datagrams of a message have, else length, and take note of
 * their ECN: GRO joins none that differ in it. */
static size_t look_at_control(struct ingress *self, struct msghdr *message, size_t length)
{
	size_t found = length;
	int size;

	self->outer_ecn = ECN_NOT_ECT;
	for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each)) {
		if (each->cmsg_level == IPPROTO_UDP && each->cmsg_type == UDP_GRO) {
			memcpy(&size, CMSG_DATA(each), sizeof(size));
			if (size > 0)
				found = (size_t)size;
		} else if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_TOS) {
			/* One byte (net/ipv4/ip_sockglue.c, ip_cmsg_recv_tos). */
			self->outer_ecn = *CMSG_DATA(each) & ECN_MASK;
		} else if (each->cmsg_level == IPPROTO_IPV6 && each->cmsg_type == IPV6_TCLASS) {
			memcpy(&size, CMSG_DATA(each), sizeof(size));
			self->outer_ecn = (uint8_t)(size & ECN_MASK);
		}
	}
	return found;
}

/* Send an echo request that the supervisor cannot seal. What is handed over begins with the room that the
 * seal takes. */
static void ask(struct ingress *self, uint8_t *handed, size_t length)
{
	int tries = 2; /* as in verify() */

	if (length < TEXT - CIRCUIT_ID + VERIFICATION_HEADER) {
		self->counters[RX_SHORT]++;
		return;
	}
	handed += TEXT - CIRCUIT_ID;
	length -= TEXT - CIRCUIT_ID;
	if (!seal_answer(self, &handed, &length))
		return;
	while (tries-- && !answer(self, handed, length))
		;
}

/* Take what the supervisor hands over: echo requests, and sealed datagrams that came to it or to another
 * circuit's worker, which cannot open them. Nothing else is in the buffer meanwhile. */
static void take_handed(struct ingress *self)
{
	self->outer_ecn = ECN_NOT_ECT; /* not known */
	for (int taken = 0; taken < HANDED_MAX; taken++) {
		ssize_t length = self->io->recv(self->divert_fd, self->buffer, RECEIVE_SLOT, MSG_DONTWAIT);
		if (length <= 0)
			return;
		if (self->buffer[0] == TO_BE_SENT) {
			ask(self, self->buffer, (size_t)length);
			continue;
		}
		take_datagram(self, self->buffer, (size_t)length);
		ingress_flush(self);
	}
}

/* Take up keys that are new, and forget those that were wiped: also the one that answers are sealed with, which
 * may be wanted by nobody. Returns whether there is a key to receive with. */
static bool look_after_keys(struct ingress *self)
{
	sealer_look(&self->sealer);
	return opener_look(&self->opener);
}

void ingress_take_handed(struct ingress *self)
{
	look_after_keys(self);
	take_handed(self);
}

int ingress_look_ms(struct ingress *self)
{
	return look_after_keys(self) ? LOOK_MS : LOOK_FIRST_MS;
}

/* Wait for datagrams on an encrypted circuit. Returns how many receives there were: none where there was
 * nothing for a while, so that keys are looked after, or something else to do. -1: as errno says. */
static int receive_sealed(struct ingress *self, struct mmsghdr *messages, unsigned int slots)
{
	struct pollfd sources[2] = {
		{.fd = self->receive_fd, .events = POLLIN},
		{.fd = self->divert_fd, .events = POLLIN},
	};
	int count;

	if (++self->batches % HANDED_INTERVAL == 0)
		take_handed(self);
	do
		count = self->io->recvmmsg(self->receive_fd, messages, slots, MSG_DONTWAIT, NULL);
	while (count < 0 && errno == EINTR);
	if (count >= 0 || errno != EAGAIN)
		return count;
	/* Under load there are datagrams, and no poll. */
	int timeout_ms = ingress_look_ms(self);
	if (self->polled)
		return 0;
	int ready = self->io->poll(sources, 2, timeout_ms);
	if (ready < 0 && errno != EINTR)
		return -1;
	if (ready > 0 && sources[1].revents & POLLIN)
		ingress_take_handed(self);
	return 0;
}

int ingress_batch(struct ingress *self)
{
	struct mmsghdr messages[RECEIVE_SLOTS_SINGLE];
	struct iovec targets[RECEIVE_SLOTS_SINGLE];
	union {
		char space[2 * CMSG_SPACE(sizeof(int))]; /* size and TOS */
		struct cmsghdr align;
	} controls[RECEIVE_SLOTS_SINGLE];
	size_t slots = self->bulk ? 1 : receive_slots(self);
	size_t octets = 0;
	int count;

	self->counters[INGRESS_PROGRESS]++;
	for (size_t i = 0; i < slots; i++) {
		targets[i] = (struct iovec){self->buffer + i * RECEIVE_SLOT, RECEIVE_SLOT};
		messages[i].msg_hdr = (struct msghdr){
			.msg_iov = &targets[i],
			.msg_iovlen = 1,
			.msg_control = controls[i].space,
			.msg_controllen = sizeof(controls[i].space),
		};
	}
	if (self->opener.page) {
		count = receive_sealed(self, messages, (unsigned int)slots);
		/* Behind the wait: a key that was installed meanwhile is in force. */
		if (count > 0)
			look_after_keys(self);
	} else {
		count = self->io->recvmmsg(self->receive_fd, messages, (unsigned int)slots,
					   self->polled ? MSG_DONTWAIT : MSG_WAITFORONE, NULL);
		if (count < 0 && (errno == EINTR || (errno == EAGAIN && self->polled)))
			return self->failure;
	}
	if (count < 0)
		return errno;
	for (int i = 0; i < count; i++) {
		size_t length = messages[i].msg_len;
		ingress_datagrams(self, targets[i].iov_base, length,
				  look_at_control(self, &messages[i].msg_hdr, length));
		octets += length;
	}
	self->bulk = self->gro && octets > BULK;
	ingress_flush(self);
	return self->failure;
}
