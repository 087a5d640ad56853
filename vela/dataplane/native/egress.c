/* Frames TAP to UDP. */
#define _GNU_SOURCE
#include "egress.h"

#include <errno.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "counters.h"

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008 /* include/uapi/linux/fs.h, Linux 4.14 */
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* include/uapi/linux/udp.h, Linux 4.18 */
#endif

static void set_limits(struct egress *self, size_t limit)
{
	self->datagram_limit = limit;
	self->segment_limit = self->segment ? limit : 0;
}

bool egress_init(struct egress *self)
{
	self->buffer = malloc(EGRESS_BUFFER);
	self->heads = malloc(RUN_MAX * sizeof(*self->heads));
	bool encrypted = self->sealer.page != NULL;
	bool pieces = self->fragmentation == FRAGMENT_IN_PIECES;
	self->sealed = encrypted ? malloc(SEALED_BUFFER) : NULL;
	self->pieces = pieces ? malloc(PIECES_BUFFER) : NULL;
	bool bundles = encrypted && self->bundle_limit;
	self->bundle.slots = bundles ? malloc(BUNDLE_SLOTS * sizeof(*self->bundle.slots)) : NULL;
	if (self->buffer == NULL || self->heads == NULL || (encrypted && self->sealed == NULL) ||
	    (pieces && self->pieces == NULL) || (bundles && self->bundle.slots == NULL)) {
		egress_free(self);
		return false;
	}
	self->watches_size = self->fragmentation != FRAGMENT_BY_IP || self->packet_too_big;
	limiter_init(&self->limiter);
	backlog_init(&self->backlog);
	set_limits(self, self->route_limit);
	/* Where nothing is segmented, no refusal tells that the route has become narrower. */
	self->refused_until = self->segment ? 0 : 1;
	return true;
}

void egress_free(struct egress *self)
{
	free(self->buffer);
	free(self->heads);
	free(self->sealed);
	free(self->pieces);
	free(self->bundle.slots);
	sealer_close(&self->sealer);
	self->buffer = NULL;
	self->heads = NULL;
	self->sealed = NULL;
	self->pieces = NULL;
	self->bundle.slots = NULL;
}

/* What may leave, and nothing else is sent: the run's datagrams as they are, or what an encrypted circuit
 * has made of them. prepare() alone makes one. */
struct outgoing {
	size_t count;			     /* datagrams */
	struct iovec pieces[2 * RUN_MAX];
	uint8_t piece_count[RUN_MAX];	     /* of each, one behind the other in pieces */
	struct iovec whole;		     /* all of it, where it lies in one piece */
};

static void prepare_clear(const struct egress *self, struct outgoing *outgoing)
{
	size_t pieces = 0;

	for (size_t i = 0; i < self->run_count; i++) {
		const struct datagram *datagram = &self->run[i];
		outgoing->piece_count[i] = datagram->pieces[1].iov_len ? 2 : 1;
		outgoing->pieces[pieces++] = datagram->pieces[0];
		if (datagram->pieces[1].iov_len)
			outgoing->pieces[pieces++] = datagram->pieces[1];
	}
	outgoing->whole = (struct iovec){NULL, 0};
	outgoing->count = self->run_count;
}

/* Copy the run into one piece, and seal it there. It is sealed once: what the kernel refuses is sent again
 * as it is, with the same counters. */
static void prepare_sealed(struct egress *self, struct outgoing *outgoing)
{
	struct sealed sealed[RUN_MAX];
	size_t lengths[RUN_MAX], count = self->run_count;
	uint8_t *at = self->sealed;

	for (size_t i = 0; i < count; i++) {
		const struct iovec *pieces = self->run[i].pieces;
		const uint8_t *head = pieces[0].iov_base;
		size_t first = pieces[0].iov_len - CIRCUIT_ID;
		memcpy(at + TEXT, head + CIRCUIT_ID, first);
		if (pieces[1].iov_len)
			memcpy(at + TEXT + first, pieces[1].iov_base, pieces[1].iov_len);
		lengths[i] = first + pieces[1].iov_len;
		at += TEXT + lengths[i] + AEAD_TAG;
	}
	if (sealer_seal(&self->sealer, self->sealed, lengths, &count, sealed) == REUSED)
		self->failure = EKEYREVOKED;
	for (size_t i = count; i < self->run_count; i++)
		self->counters[TX_NO_KEY] += self->run[i].frames;
	outgoing->count = count;
	outgoing->whole = (struct iovec){self->sealed, 0};
	for (size_t i = 0; i < count; i++) {
		outgoing->piece_count[i] = 1;
		outgoing->pieces[i] = (struct iovec){sealed[i].datagram, sealed[i].length};
		outgoing->whole.iov_len += sealed[i].length;
	}
}

static void prepare(struct egress *self, struct outgoing *outgoing)
{
	if (self->sealer.page)
		prepare_sealed(self, outgoing);
	else
		prepare_clear(self, outgoing);
}

/* What goes with each send beside the size of segments. */
struct extras {
	size_t length;
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(SOURCE_ADDRESS_MAX)];
};

/* The TOS byte, where it is not what the socket has by itself, and the source address. */
static void gather_extras(const struct egress *self, struct extras *extras)
{
	bool ipv4 = self->marking.outer_ipv4;
	int tos = self->run_tos;

	extras->length = 0;
	if (tos != default_tos(&self->marking)) {
		struct cmsghdr header = {
			.cmsg_len = CMSG_LEN(sizeof(tos)),
			.cmsg_level = ipv4 ? IPPROTO_IP : IPPROTO_IPV6,
			.cmsg_type = ipv4 ? IP_TOS : IPV6_TCLASS,
		};
		memset(extras->space, 0, CMSG_SPACE(sizeof(tos)));
		memcpy(extras->space, &header, sizeof(header));
		memcpy(extras->space + CMSG_LEN(0), &tos, sizeof(tos));
		extras->length = CMSG_SPACE(sizeof(tos));
	}
	memcpy(extras->space + extras->length, self->source_address.space, self->source_address.length);
	extras->length += self->source_address.length;
}

/* Send all in one call, which the kernel cuts into datagrams of size bytes, the last one maybe shorter. */
static int send_segmented(struct egress *self, struct outgoing *outgoing, uint16_t size)
{
	union {
		char space[CMSG_SPACE(sizeof(uint16_t)) + sizeof(((struct extras *)0)->space)];
		struct cmsghdr align;
	} control = {0};
	struct extras extras;
	ssize_t sent;

	gather_extras(self, &extras);
	struct msghdr message = {
		.msg_name = self->destination_length ? &self->destination : NULL,
		.msg_namelen = self->destination_length,
		.msg_iov = outgoing->pieces,
		.msg_control = control.space,
		.msg_controllen = CMSG_SPACE(sizeof(uint16_t)) + extras.length,
	};
	struct cmsghdr *segment = CMSG_FIRSTHDR(&message);

	segment->cmsg_level = IPPROTO_UDP;
	segment->cmsg_type = UDP_SEGMENT;
	segment->cmsg_len = CMSG_LEN(sizeof(size));
	memcpy(CMSG_DATA(segment), &size, sizeof(size));
	memcpy(control.space + CMSG_SPACE(sizeof(size)), extras.space, extras.length);
	if (outgoing->whole.iov_base) {
		message.msg_iov = &outgoing->whole;
		message.msg_iovlen = 1;
	} else {
		for (size_t i = 0; i < outgoing->count; i++)
			message.msg_iovlen += outgoing->piece_count[i];
	}
	do
		sent = self->io->sendmsg(self->send_fd, &message, 0);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? errno : 0;
}

/* Send one by one; what cannot be sent is counted. */
static void send_singly(struct egress *self, struct outgoing *outgoing)
{
	struct mmsghdr messages[RUN_MAX];
	struct iovec *piece = outgoing->pieces;
	struct extras extras;
	size_t next = 0;
	int tries = 0;

	gather_extras(self, &extras);
	for (size_t i = 0; i < outgoing->count; i++) {
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = self->destination_length ? &self->destination : NULL,
			.msg_namelen = self->destination_length,
			.msg_iov = piece,
			.msg_iovlen = outgoing->piece_count[i],
			.msg_control = extras.length ? extras.space : NULL,
			.msg_controllen = extras.length,
		};
		piece += outgoing->piece_count[i];
	}
	while (next < outgoing->count) {
		int sent = self->io->sendmmsg(self->send_fd, messages + next,
					      (unsigned int)(outgoing->count - next), 0);
		if (sent > 0) {
			for (; sent > 0; sent--, next++)
				self->counters[TX_FRAGMENTED] +=
					self->run[next].length > self->datagram_limit;
			tries = 0;
		} else if (errno == EINTR) {
			continue;
		} else if (++tries == SEND_TRIES) {
			self->counters[TX_ERRORS] += self->run[next].frames;
			tries = 0;
			next++;
		}
	}
}

static uint64_t ms_by(const struct egress *self, clockid_t clock)
{
	struct timespec now;

	self->io->clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t now_ms(const struct egress *self)
{
	return ms_by(self, CLOCK_MONOTONIC_COARSE);
}

static time_t now_s(const struct egress *self)
{
	return (time_t)(now_ms(self) / 1000);
}

/* Return the largest datagram that the route takes in one piece, as the kernel knows it by now; 0 where
 * it does not tell: of a socket that is not connected, or goes by its interface. */
static size_t ask_route_limit(const struct egress *self)
{
	int domain, mtu, discover;
	socklen_t length = sizeof(int);

	if (self->io->getsockopt(self->send_fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0)
		return 0;
	bool ipv4 = domain == AF_INET;
	size_t headers = (ipv4 ? IPV4_HEADER : IPV6_HEADER) + UDP_HEADER;
	length = sizeof(int);
	if (self->io->getsockopt(self->send_fd, ipv4 ? IPPROTO_IP : IPPROTO_IPV6,
				 ipv4 ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER, &discover, &length) < 0 ||
	    discover > IP_PMTUDISC_DO)
		return 0;
	length = sizeof(int);
	if (self->io->getsockopt(self->send_fd, ipv4 ? IPPROTO_IP : IPPROTO_IPV6,
				 ipv4 ? IP_MTU : IPV6_MTU, &mtu, &length) < 0 ||
	    mtu < 0 || (size_t)mtu <= headers)
		return 0;
	return (size_t)mtu - headers;
}

/* Tell whether it is segments of this size that the kernel refuses, in net/ipv4/udp.c, udp_send_skb, and
 * does not report what ICMP said of an earlier datagram, which can be EMSGSIZE, too. */
static bool refuses_segments(const struct egress *self, int error, size_t size)
{
	size_t limit;

	switch (error) {
	case EIO: /* no checksum offload, or IPsec */
		return true;
	case EINVAL:
	case EMSGSIZE:
		limit = ask_route_limit(self);
		return limit && size > limit;
	}
	return false;
}

/* Remember a refusal, so that not every batch finds it out again. */
static void limit_segments(struct egress *self, int error, size_t size)
{
	if (error == EIO) {
		self->segment_limit = 0;
	} else if (error == EINVAL || error == EMSGSIZE) {
		/* The route has become narrower: larger ones are fragmented, and count. */
		size_t limit = ask_route_limit(self);
		if (limit == 0 || limit >= size)
			limit = size - 1;
		set_limits(self, limit);
	} else {
		return;
	}
	self->refused_until = now_s(self) + REFUSED_S;
}

/* Forget refusals that are old; what is known of the route stays true. */
static void renew_limits(struct egress *self)
{
	if (self->refused_until == 0 || now_s(self) < self->refused_until)
		return;
	size_t limit = ask_route_limit(self);
	if (limit == 0 || limit > self->route_limit)
		limit = self->route_limit;
	set_limits(self, limit);
	bool again = limit < self->route_limit || !self->segment;
	self->refused_until = again ? now_s(self) + REFUSED_S : 0;
}

/* Send the run. */
static void send_run(struct egress *self)
{
	struct outgoing outgoing;
	int error = 0;

	if (self->run_count == 0)
		return;
	prepare(self, &outgoing);
	size_t size = self->run[0].length;
	bool segmented = outgoing.count > 1 && size <= self->segment_limit;
	if (segmented) {
		for (int tries = 0; tries < SEND_TRIES; tries++) {
			error = send_segmented(self, &outgoing, (uint16_t)size);
			if (!error || refuses_segments(self, error, size))
				break;
		}
		if (error)
			limit_segments(self, error, size);
	}
	if (!segmented || error)
		send_singly(self, &outgoing);
	self->run_count = 0;
	self->run_octets = 0;
	self->pieces_used = 0;
}

/* Return the place of a datagram of this length, before it may be sealed; what cannot go with it was sent.
 * There is one, as settle() follows. */
static struct datagram *append(struct egress *self, size_t length)
{
	if (self->sealer.page)
		length += SEAL;
	if (self->run_count) {
		size_t size = self->run[0].length;
		bool single = length > self->segment_limit;
		if (single != (size > self->segment_limit) || (!single && length > size) ||
		    self->tos != self->run_tos)
			send_run(self);
	}
	self->run_tos = self->tos;
	struct datagram *datagram = &self->run[self->run_count++];
	datagram->length = length;
	datagram->frames = 1;
	self->run_octets += length;
	return datagram;
}

/* Send the run at once if no datagram can be added. */
static void settle(struct egress *self)
{
	size_t size = self->run[0].length;

	if (self->run_count == RUN_MAX || self->run[self->run_count - 1].length < size ||
	    self->run_octets + size > MAX_UDP_PAYLOAD)
		send_run(self);
}

/* Let the frames that were bundled so far go behind those of the run. */
static void close_bundle(struct egress *self)
{
	struct bundle *bundle = &self->bundle;
	uint8_t tos = self->tos, *at;
	size_t length;

	if (bundle->frames == 0)
		return;
	at = bundle->slots[bundle->slot];
	length = bundle->used;
	if (bundle->frames == 1) {
		/* One by itself travels as ever: its circuit id takes the place of its length. */
		at += BUNDLE + BUNDLED_LENGTH;
		length -= BUNDLE + BUNDLED_LENGTH;
		at[0] = self->encapsulation.circuit_id;
	}
	self->tos = bundle->tos;
	struct datagram *datagram = append(self, length);
	datagram->pieces[0] = (struct iovec){at, length};
	datagram->pieces[1] = (struct iovec){NULL, 0};
	datagram->frames = bundle->frames;
	self->tos = tos;
	bundle->frames = 0;
	bundle->slot = (bundle->slot + 1) % BUNDLE_SLOTS;
	settle(self);
}

void egress_flush(struct egress *self)
{
	close_bundle(self);
	send_run(self);
}

/* Put a datagram of length bytes with others into one; false: it has to travel alone. */
static bool bundle_up(struct egress *self, const uint8_t *datagram, size_t length)
{
	struct bundle *bundle = &self->bundle;
	size_t text = length - CIRCUIT_ID;
	size_t limit = self->bundle_limit < self->datagram_limit ? self->bundle_limit : self->datagram_limit;

	if (bundle->slots == NULL || text > BUNDLED_MAX)
		return false;
	if (bundle->frames &&
	    (bundle->tos != self->tos || bundle->used + BUNDLED_LENGTH + text + SEAL > limit))
		close_bundle(self);
	uint8_t *at = bundle->slots[bundle->slot];
	if (bundle->frames == 0) {
		at[0] = self->encapsulation.circuit_id;
		at[CIRCUIT_ID] = BUNDLE_BYTE;
		bundle->used = CIRCUIT_ID + BUNDLE;
		bundle->tos = self->tos;
	}
	put16(at + bundle->used, (uint16_t)text);
	memcpy(at + bundle->used + BUNDLED_LENGTH, datagram + CIRCUIT_ID, text);
	bundle->used += BUNDLED_LENGTH + text;
	bundle->frames++;
	return true;
}

/* Tell whether a datagram of this length is not just sent as it is. */
static bool is_too_large(const struct egress *self, size_t length)
{
	return self->watches_size &&
	       length + (self->sealer.page ? SEAL : 0) > self->datagram_limit;
}

/* Copy length bytes of what lies in two parts, from start on; zeros behind their end. */
static void copy_parts(const struct iovec *parts, size_t start, uint8_t *to, size_t length)
{
	for (int i = 0; i < 2; i++) {
		size_t there = parts[i].iov_len > start ? parts[i].iov_len - start : 0;
		size_t some = there < length ? there : length;
		if (some)
			memcpy(to, (const uint8_t *)parts[i].iov_base + start, some);
		to += some;
		length -= some;
		start = there ? 0 : start - parts[i].iov_len;
	}
	memset(to, 0, length);
}

static void append_pieces(struct egress *self, const struct iovec *parts, const struct cut *cut, size_t length)
{
	uint32_t number = self->frame_number;

	for (size_t i = 0; i < cut->count; i++) {
		struct datagram *datagram = append(self, PIECE_HEADER + cut->size);
		uint8_t *at = self->pieces + self->pieces_used;
		write_piece_header(at, self->encapsulation.circuit_id, cut, i, length, number);
		copy_parts(parts, CIRCUIT_ID + i * cut->size, at + PIECE_HEADER, cut->size);
		datagram->pieces[0] = (struct iovec){at, PIECE_HEADER + cut->size};
		datagram->pieces[1] = (struct iovec){NULL, 0};
		self->pieces_used += PIECE_HEADER + cut->size;
		settle(self);
	}
	self->frame_number += 1 + self->skipped_numbers;
	self->counters[TX_PIECED]++;
}

/* Tell the sender of a packet that is_too_large() what would fit, if it is to hear of it. link: of the frame;
 * parts: the datagram, with its IP header at network. */
static void tell_sender(struct egress *self, const uint8_t *link, size_t link_length, const struct iovec *parts,
			size_t network)
{
	uint8_t packet[QUOTED_MAX], message[sizeof(struct virtio_header) + TOO_BIG_MAX];
	size_t length = parts[0].iov_len + parts[1].iov_len - network;
	size_t around = network + (self->sealer.page ? SEAL : 0);

	if (!self->packet_too_big || link_length == 0 || around > self->datagram_limit ||
	    !limiter_allows(&self->limiter, now_ms(self)))
		return;
	copy_parts(parts, network, packet, sizeof(packet));
	memset(message, 0, self->virtio_header);
	size_t written = write_too_big(link, link_length, packet, length, self->datagram_limit - around,
				       message + self->virtio_header);
	if (written == 0)
		return;
	limiter_take(&self->limiter);
	struct iovec whole = {message, self->virtio_header + written};
	if (self->io->writev(self->tap_fd, &whole, 1) >= 0)
		self->counters[TX_TOO_BIG_SENT]++;
}

/* Send a datagram that is_too_large(), which lies in one or two parts. Returns whether it is sent. */
static bool append_large(struct egress *self, const struct iovec *parts)
{
	if (self->fragmentation == FRAGMENT_NEVER) {
		self->counters[TX_TOO_LARGE]++;
		return false;
	}
	size_t length = parts[0].iov_len + parts[1].iov_len;
	size_t around = PIECE_HEADER + (self->sealer.page ? SEAL : 0);
	size_t room = self->datagram_limit > around ? self->datagram_limit - around : 0;
	struct cut cut = {0, 0};
	if (self->fragmentation == FRAGMENT_IN_PIECES)
		cut = cut_evenly(length - CIRCUIT_ID, room);
	if (cut.count) {
		append_pieces(self, parts, &cut, length - CIRCUIT_ID);
		return true;
	}
	/* IP cuts it, where it is to, or the path is so narrow that there would be too many. A segment's head is
	 * not kept. */
	struct datagram *whole = append(self, length);
	memcpy(whole->pieces, parts, sizeof(whole->pieces));
	if (parts[0].iov_len <= SEGMENT_HEAD_MAX) {
		whole->pieces[0].iov_base = self->heads[whole - self->run];
		memcpy(whole->pieces[0].iov_base, parts[0].iov_base, parts[0].iov_len);
	}
	settle(self);
	return true;
}

/* As append_segments(), where some are too large for a datagram. What is not sent is subtracted from what was
 * counted. */
static void append_large_segments(struct egress *self, struct segmentation *segmentation, const uint8_t *link,
				  size_t head_length, bool elided)
{
	size_t link_length = head_length - (segmentation->head_length - segmentation->network);
	uint8_t head[SEGMENT_HEAD_MAX];
	bool told = false;

	for (size_t left = segmentation_left(segmentation); left > 0; left--) {
		const uint8_t *payload;
		size_t length = segmentation_next(segmentation, head, &payload);
		struct iovec parts[2] = {{head, segmentation->head_length}, {(void *)payload, length}};
		if (!is_too_large(self, segmentation->head_length + length)) {
			struct datagram *datagram = append(self, segmentation->head_length + length);
			parts[0].iov_base = self->heads[datagram - self->run];
			memcpy(parts[0].iov_base, head, segmentation->head_length);
			memcpy(datagram->pieces, parts, sizeof(parts));
			settle(self);
			continue;
		}
		/* All of them have one sender. */
		if (!told)
			tell_sender(self, link, link_length, parts, segmentation->network);
		told = true;
		if (!append_large(self, parts)) {
			self->counters[TX_FRAMES]--;
			self->counters[TX_BYTES] -= head_length + length;
			self->counters[TX_ELIDED] -= elided;
		}
	}
}

static void append_segments(struct egress *self, struct segmentation *segmentation)
{
	for (size_t left = segmentation_left(segmentation); left > 0; left--) {
		size_t size = segmentation->head_length + segmentation_size(segmentation);
		struct datagram *datagram = append(self, size);
		uint8_t *head = self->heads[datagram - self->run];
		const uint8_t *payload;
		size_t length = segmentation_next(segmentation, head, &payload);
		datagram->pieces[0] = (struct iovec){head, segmentation->head_length};
		datagram->pieces[1] = (struct iovec){(void *)payload, length};
		settle(self);
	}
}

/* Tell whether the receiver would complete this frame's checksum, and describe where it is.
 * docs/protocol.md, 3.5. */
static bool is_partial(const struct egress *self, const uint8_t *frame, size_t length,
		       struct transport *transport)
{
	const uint8_t *packet = frame + ETHERNET_HEADER;

	return self->partial_checksums && self->encapsulation.elision == ELISION_KNOWN &&
	       can_elide(&self->encapsulation, frame, length) &&
	       find_transport(packet, length - ETHERNET_HEADER, transport) &&
	       is_checksum_partial(packet, transport);
}

/* Tell whether it is this checksum that is left to be done. */
static bool is_to_be_finished(const struct virtio_header *header, const struct transport *transport)
{
	return header->flags & VIRTIO_NEEDS_CHECKSUM &&
	       header->checksum_start == ETHERNET_HEADER + transport->offset &&
	       header->checksum_offset == transport->checksum - transport->offset;
}

/* Lower the MSS that a frame announces. A checksum that is left to be done is done later, over the new
 * value. */
static void clamp(struct egress *self, uint8_t *frame, size_t length, const struct virtio_header *header)
{
	size_t network = network_offset(frame, length);
	struct syn syn;

	if (network == 0 || !find_syn(frame + network, length - network, &syn))
		return;
	size_t before = DATA_HEADER + (self->sealer.page ? SEAL : 0);
	if (!can_elide(&self->encapsulation, frame, length))
		before += ESCAPE + network;
	bool partial = header->flags & VIRTIO_NEEDS_CHECKSUM &&
		       header->checksum_start == syn.header - frame &&
		       header->checksum_offset == TCP_CHECKSUM;
	self->counters[TX_MSS_CLAMPED] +=
		lower_mss(&syn, mss_limit(&self->mss_clamp, &syn, before), partial);
}

/* Let the sender of a frame that is read now know of a queue that stands: by a mark, or where it would not see
 * that, by a loss. Returns whether the frame is to be lost, or of several segments one. */
static bool relieve(struct egress *self, uint8_t *frame, size_t length)
{
	size_t network = length < BACKLOG_FRAME ? 0 : network_offset(frame, length);

	if (network == 0 || is_network_control(frame + network, length - network) ||
	    !backlog_is_due(&self->backlog, ms_by(self, CLOCK_MONOTONIC)))
		return false;
	if (!fold_ecn(frame + network, length - network, ECN_CE))
		return true;
	self->counters[TX_MARKED]++;
	return false;
}

void egress_frame(struct egress *self, uint8_t *frame, size_t length,
		  const struct virtio_header *header)
{
	uint64_t *counters = self->counters;
	struct segmentation segmentation;
	struct transport transport;
	size_t network = 0;
	uint8_t *datagram;

	if (length < ETHERNET_HEADER || length > FRAME_MAX) {
		counters[TX_ERRORS]++;
		return;
	}
	bool super = header->gso_type != VIRTIO_GSO_NONE;
	if (super)
		network = network_offset(frame, length);
	if (super ? network == 0 : length > self->encapsulation.frame_limit) {
		counters[TX_ERRORS]++;
		return;
	}
	if (mss_clamp_is_on(&self->mss_clamp))
		clamp(self, frame, length, header);
	bool lost = relieve(self, frame, length);
	if (lost && !super) {
		counters[TX_BACKLOG]++;
		return;
	}
	bool unfinished = header->flags & VIRTIO_NEEDS_CHECKSUM;
	bool looks = is_partial(self, frame, length, &transport);
	bool leave = looks && is_to_be_finished(header, &transport);
	/* Before all that depends on the frame's bytes: this may write to any of them, when the virtio
	 * header is a hostile guest's. */
	if (unfinished && !super && !leave) {
		if (!finish_checksum(frame, length, header)) {
			counters[TX_ERRORS]++;
			return;
		}
		looks = is_partial(self, frame, length, &transport);
	}
	self->tos = outer_tos(&self->marking, frame, length);
	/* A finished one that looks left must not be taken for that: it travels complete. */
	enum encapsulated how =
		encapsulate(&self->encapsulation, frame, length, leave || !looks, &datagram);
	if (how == NOT_IP) {
		counters[TX_NOT_IP]++;
		return;
	}
	/* Positions in the frame, as seen from the datagram: it begins before the frame, or in it. */
	ptrdiff_t shift = frame - datagram;
	size_t octets = length - (size_t)(datagram - frame);
	if (!super) {
		const struct iovec parts[2] = {{datagram, octets}, {NULL, 0}};
		if (is_too_large(self, octets)) {
			size_t link = how == ELIDED ? ETHERNET_HEADER : network_offset(frame, length);
			tell_sender(self, frame, link, parts, link + (size_t)shift);
			close_bundle(self);
			if (!append_large(self, parts))
				return;
		} else if (!bundle_up(self, datagram, octets)) {
			close_bundle(self);
			struct datagram *only = append(self, octets);
			memcpy(only->pieces, parts, sizeof(parts));
			settle(self);
		}
		counters[TX_FRAMES]++;
		counters[TX_BYTES] += length;
		counters[TX_ELIDED] += how == ELIDED;
		return;
	}
	ptrdiff_t start = (ptrdiff_t)header->checksum_start + shift;
	if (!unfinished || start < 0 ||
	    !segmentation_open(&segmentation, datagram, octets, network + (size_t)shift,
			       (size_t)start, header, leave)) {
		counters[TX_ERRORS]++;
		return;
	}
	size_t head = segmentation.head_length - (size_t)shift; /* of each frame */
	if (head + segmentation_size(&segmentation) > self->encapsulation.frame_limit) {
		counters[TX_ERRORS]++;
		return;
	}
	if (lost) {
		counters[TX_BACKLOG]++;
		if (!segmentation_skip(&segmentation))
			return;
	}
	close_bundle(self);
	size_t count = segmentation_left(&segmentation);
	counters[TX_FRAMES] += count;
	counters[TX_BYTES] += count * head + segmentation.payload_length;
	counters[TX_ELIDED] += how == ELIDED ? count : 0;
	if (is_too_large(self, segmentation.head_length + segmentation_size(&segmentation)))
		append_large_segments(self, &segmentation, frame, head, how == ELIDED);
	else
		append_segments(self, &segmentation);
}

/* Read what the TAP gives next; wait for it if wait is set. Returns its length; -1 where there is
 * nothing more at once, or a signal ended the wait (EAGAIN), or where the TAP is lost. */
static ssize_t read_tap(struct egress *self, const struct iovec *target, bool wait)
{
	struct pollfd tap = {.fd = self->tap_fd, .events = POLLIN};
	/* On an encrypted circuit no read waits, so that keys are looked after where there are no frames. */
	bool encrypted = self->sealer.page != NULL;
	ssize_t length;

	for (;;) {
		/* While there is a queue, whether it ends is seen first. */
		bool blocks = wait && self->nowait && !encrypted && !self->polled && self->backlog.empty;
		int flags = self->nowait && !blocks ? RWF_NOWAIT : 0;
		length = self->io->preadv2(self->tap_fd, target, 1, -1, flags);
		if (length >= 0 || (errno != EINTR && errno != EAGAIN))
			return length;
		if (errno == EINTR) {
			if (!blocks)
				continue;
			errno = EAGAIN;
			return -1;
		}
		backlog_ran_empty(&self->backlog);
		if (!wait || blocks || self->polled)
			return -1;
		if (self->nowait && !encrypted)
			continue;
		/* Behind a read that found nothing: under load there are frames, and no poll. What is
		 * wrong with the TAP the next read says. */
		self->io->poll(&tap, 1, encrypted ? LOOK_MS : -1);
		wait = false;
	}
}

int egress_batch(struct egress *self)
{
	size_t octets = 0, most = self->polled ? POLLED_BATCH : SIZE_MAX;

	self->counters[EGRESS_PROGRESS]++;
	if (self->sealer.page)
		sealer_look(&self->sealer);
	renew_limits(self);
	for (int taken = 0; taken < BATCH && octets < most; taken++) {
		if (self->run_count == 0)
			self->used = 0;
		if (self->used + FRAME_OFFSET + FRAME_MAX + 1 > EGRESS_BUFFER) {
			send_run(self);
			self->used = 0;
		}
		uint8_t *frame = self->buffer + self->used + FRAME_OFFSET;
		/* One byte more than a frame may have shows a frame that was cut off. */
		struct iovec target = {frame - self->virtio_header,
				       self->virtio_header + FRAME_MAX + 1};
		ssize_t length = read_tap(self, &target, taken == 0);
		if (length < 0) {
			int error = errno;
			egress_flush(self);
			return error == EAGAIN ? self->failure : error;
		}
		struct virtio_header header = {0};
		if ((size_t)length < self->virtio_header) {
			self->counters[TX_ERRORS]++;
			continue;
		}
		memcpy(&header, frame - self->virtio_header, self->virtio_header);
		size_t own = (size_t)length - self->virtio_header;
		octets += own;
		egress_frame(self, frame, own, &header);
		/* Aligned, so that what is compared and summed is. */
		self->used += (FRAME_OFFSET + own + 63) / 64 * 64;
	}
	egress_flush(self);
	return self->failure;
}
