/* Joins frames that continue each other. */
#include "coalesce.h"

#include <string.h>

#include "checksum.h"

/* What is compared of two IPv4 headers: all but length, identification, header checksum. */
static bool same_ipv4(const uint8_t *a, const uint8_t *b)
{
	return memcmp(a, b, IPV4_TOTAL_LENGTH) == 0 &&
	       memcmp(a + IPV4_FRAGMENT, b + IPV4_FRAGMENT, IPV4_CHECKSUM - IPV4_FRAGMENT) == 0 &&
	       memcmp(a + IPV4_SOURCE, b + IPV4_SOURCE, IPV4_HEADER - IPV4_SOURCE) == 0;
}

/* Of two IPv6 headers: all but the payload's length. */
static bool same_ipv6(const uint8_t *a, const uint8_t *b)
{
	return memcmp(a, b, IPV6_PAYLOAD_LENGTH) == 0 &&
	       memcmp(a + IPV6_NEXT_HEADER, b + IPV6_NEXT_HEADER, IPV6_HEADER - IPV6_NEXT_HEADER) == 0;
}

/* Of two TCP headers: all but sequence number, flags and checksum; length is that of both. */
static bool same_tcp(const uint8_t *a, const uint8_t *b, size_t length)
{
	return memcmp(a, b, TCP_SEQUENCE) == 0 &&
	       memcmp(a + 8, b + 8, TCP_FLAGS - 8) == 0 &&
	       memcmp(a + 14, b + 14, TCP_CHECKSUM - 14) == 0 &&
	       memcmp(a + 18, b + 18, length - 18) == 0;
}

/* Point to the IP packet in a frame of IPv4 or IPv6 behind its tags; NULL where there is none. */
static const uint8_t *find_packet(const struct frame *frame, size_t *tags, size_t *length)
{
	size_t network = ETHERNET_HEADER;

	/* Where the header was elided, what follows was seen to be a packet. */
	if (!frame->elided) {
		size_t whole = frame->link_length + frame->rest_length;
		network = network_offset(frame->link, whole);
		if (network == 0 || network > ETHERNET_HEADER + 2 * VLAN_TAG)
			return NULL;
	}
	*tags = network - ETHERNET_HEADER;
	*length = frame->rest_length - *tags;
	const uint8_t *packet = frame->rest + *tags;
	if (!frame->elided) {
		bool ipv4 = get16(packet - 2) == ETHERTYPE_IPV4;
		if (ipv4 ? !is_ipv4_packet(packet, *length) : !is_ipv6_packet(packet, *length))
			return NULL;
	}
	return packet;
}

/* Whether a frame can be part of a coalesced at all. */
static bool joinable(const uint8_t *packet, size_t length, struct transport *transport)
{
	if (!find_transport(packet, length, transport) || transport->payload == length)
		return false;
	if (transport->ipv4 && transport->offset != IPV4_HEADER)
		return false;
	const uint8_t *header = packet + transport->offset;
	if (transport->tcp)
		return (header[TCP_FLAGS] & ~(TCP_ACK | TCP_PSH | TCP_ECE)) == 0 &&
		       (header[TCP_FLAGS] & TCP_ACK);
	/* One without a checksum would get one. */
	return get16(header + UDP_CHECKSUM) != 0;
}

bool checksums_right(const uint8_t *packet, size_t length, const struct transport *transport,
		     bool partial_checksum)
{
	/* All ones is right, too, but not what comes out where a checksum is computed. */
	if (transport->ipv4 && (get16(packet + IPV4_CHECKSUM) == 0xffff ||
				vela_fold(vela_sum(packet, transport->offset)) != 0xffff))
		return false;
	if (partial_checksum && is_checksum_partial(packet, transport))
		return true;
	if (transport->tcp && get16(packet + transport->checksum) == 0xffff)
		return false;
	const uint8_t *header = packet + transport->offset;
	uint64_t sum = vela_sum(header, length - transport->offset);
	return vela_fold(transport->pseudo_header + sum) == 0xffff;
}

void coalesce_start(struct coalesced *self, const struct frame *frame)
{
	size_t length;

	self->frames[0] = *frame;
	self->count = 1;
	self->open = false;
	self->verified = false;
	self->packet = find_packet(frame, &self->tags, &length);
	if (self->packet == NULL || !joinable(self->packet, length, &self->transport))
		return;
	self->length = length;
	self->payload_length = length - self->transport.payload;
	self->last_flags = self->transport.tcp ? self->packet[self->transport.offset + TCP_FLAGS] : 0;
	/* PSH ends what is handed on together. */
	self->open = !(self->last_flags & TCP_PSH);
}

bool coalesce_add(struct coalesced *self, const struct frame *frame)
{
	struct transport transport;
	size_t tags, length;

	if (!self->open || self->count == TRAIN_MAX)
		return false;
	const uint8_t *first = self->packet;
	const uint8_t *packet = find_packet(frame, &tags, &length);
	if (packet == NULL || tags != self->tags || packet[0] != first[0])
		return false;
	if (frame->elided != self->frames[0].elided)
		return false;
	if (!joinable(packet, length, &transport) || transport.tcp != self->transport.tcp ||
	    transport.payload != self->transport.payload)
		return false;
	size_t payload_length = length - transport.payload;
	if (payload_length > self->payload_length ||
	    self->length + payload_length > MAX_IP_PACKET)
		return false;

	size_t ahead = self->count * self->payload_length;
	if (transport.ipv4) {
		uint16_t expected = (uint16_t)(get16(first + IPV4_IDENTIFICATION) + self->count);
		if (!same_ipv4(first, packet) || get16(packet + IPV4_IDENTIFICATION) != expected)
			return false;
	} else if (!same_ipv6(first, packet)) {
		return false;
	}
	const uint8_t *first_header = first + transport.offset;
	const uint8_t *header = packet + transport.offset;
	if (transport.tcp) {
		uint32_t expected = get32(first_header + TCP_SEQUENCE) + (uint32_t)ahead;
		if (get32(header + TCP_SEQUENCE) != expected)
			return false;
		if (!same_tcp(first_header, header, transport.payload - transport.offset))
			return false;
		if ((self->last_flags ^ header[TCP_FLAGS]) & ~TCP_PSH)
			return false;
	} else if (memcmp(first_header, header, UDP_LENGTH) != 0) {
		return false;
	}
	if (memcmp(frame->link, self->frames[0].link, ETHERNET_HEADER) != 0 ||
	    (tags && memcmp(frame->rest, self->frames[0].rest, tags) != 0))
		return false;

	/* Last, as it reads all of it; the first one's when there is a second. */
	if (!self->verified) {
		size_t first_length = self->transport.payload + self->payload_length;
		if (!checksums_right(first, first_length, &self->transport, self->partial_checksum)) {
			self->open = false;
			return false;
		}
		self->verified = true;
	}
	if (!checksums_right(packet, length, &transport, self->partial_checksum))
		return false;

	self->frames[self->count++] = *frame;
	self->length += payload_length;
	if (transport.tcp)
		self->last_flags = header[TCP_FLAGS];
	/* Only the last one may be shorter. */
	if (payload_length < self->payload_length || self->last_flags & TCP_PSH)
		self->open = false;
	return true;
}

size_t coalesce_finish(struct coalesced *self, struct iovec *pieces)
{
	const struct transport *transport = &self->transport;
	struct virtio_header header = {
		.flags = VIRTIO_NEEDS_CHECKSUM,
		.segment_size = (uint16_t)self->payload_length,
	};
	uint8_t *at = self->head + sizeof(header);
	size_t network = ETHERNET_HEADER + self->tags;

	memcpy(at, self->frames[0].link, ETHERNET_HEADER);
	memcpy(at + ETHERNET_HEADER, self->frames[0].rest, self->tags + transport->payload);
	uint8_t *packet = at + network;
	if (transport->ipv4) {
		put16(packet + IPV4_TOTAL_LENGTH, (uint16_t)self->length);
		put16(packet + IPV4_CHECKSUM, 0);
		uint16_t value = (uint16_t)~vela_fold(vela_sum(packet, IPV4_HEADER));
		memcpy(packet + IPV4_CHECKSUM, &value, sizeof(value));
	} else {
		put16(packet + IPV6_PAYLOAD_LENGTH, (uint16_t)(self->length - IPV6_HEADER));
	}
	size_t rest = self->length - transport->offset;
	uint8_t *own = packet + transport->offset;
	if (transport->tcp) {
		own[TCP_FLAGS] = self->last_flags;
		header.gso_type = transport->ipv4 ? VIRTIO_GSO_TCPV4 : VIRTIO_GSO_TCPV6;
	} else {
		put16(own + UDP_LENGTH, (uint16_t)rest);
		header.gso_type = VIRTIO_GSO_UDP_L4;
	}
	uint16_t sum = pseudo_header_sum(packet, transport->ipv4,
					 transport->tcp ? PROTOCOL_TCP : PROTOCOL_UDP, rest);
	memcpy(packet + transport->checksum, &sum, sizeof(sum));
	header.header_length = (uint16_t)(network + transport->payload);
	header.checksum_start = (uint16_t)(network + transport->offset);
	header.checksum_offset = (uint16_t)(transport->checksum - transport->offset);
	memcpy(self->head, &header, sizeof(header));

	pieces[0] = (struct iovec){self->head, sizeof(header) + header.header_length};
	for (size_t i = 0; i < self->count; i++) {
		const struct frame *frame = &self->frames[i];
		size_t skip = self->tags + transport->payload;
		pieces[1 + i] = (struct iovec){(void *)(frame->rest + skip), frame->rest_length - skip};
	}
	return 1 + self->count;
}
