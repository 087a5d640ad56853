/* Checksums and segments of what the kernel left unfinished. */
#include "segmentation.h"

#include <arpa/inet.h>
#include <string.h>

#include "checksum.h"
#include "packet.h"

static void put_checksum(uint8_t *field, uint64_t sum)
{
	uint16_t value = (uint16_t)~vela_fold(sum);
	memcpy(field, &value, sizeof(value));
}

/* As put_checksum(), where zero stands for none: its other form (RFC 768). */
static void put_checksum_never_zero(uint8_t *field, uint64_t sum)
{
	uint16_t value = (uint16_t)~vela_fold(sum);
	if (value == 0)
		value = 0xffff;
	memcpy(field, &value, sizeof(value));
}

static uint16_t raw16(const uint8_t *at)
{
	uint16_t value;
	memcpy(&value, at, sizeof(value));
	return value;
}

bool finish_checksum(uint8_t *frame, size_t length, const struct virtio_header *header)
{
	size_t start = header->checksum_start;
	size_t field = start + header->checksum_offset;

	if (field + sizeof(uint16_t) > length)
		return false;
	/* net/core/dev.c, skb_checksum_help: whatever the protocol. */
	put_checksum_never_zero(frame + field, vela_sum(frame + start, length - start));
	return true;
}

bool segmentation_open(struct segmentation *self, const uint8_t *datagram, size_t length,
		       size_t network, size_t transport, const struct virtio_header *header,
		       bool partial_checksum)
{
	uint8_t kind = header->gso_type & ~VIRTIO_GSO_ECN;
	size_t own;

	if (network >= length)
		return false;
	self->ipv4 = datagram[network] >> 4 == 4;
	if (!self->ipv4 && datagram[network] >> 4 != 6)
		return false;
	self->tcp = kind == (self->ipv4 ? VIRTIO_GSO_TCPV4 : VIRTIO_GSO_TCPV6);
	if (!self->tcp && kind != VIRTIO_GSO_UDP_L4)
		return false;
	if (transport < network + (self->ipv4 ? IPV4_HEADER : IPV6_HEADER))
		return false;
	if (transport + (self->tcp ? TCP_HEADER : UDP_HEADER) > length)
		return false;
	own = UDP_HEADER;
	if (self->tcp) {
		own = (size_t)(datagram[transport + TCP_DATA_OFFSET] >> 4) * 4;
		if (own < TCP_HEADER || transport + own > length)
			return false;
	}
	/* The IPv4 header ends where the transport's begins; what stands before an IPv6 packet's
	 * transport are extension headers, which each segment gets as they are. */
	if (self->ipv4 && (size_t)(datagram[network] & 0x0f) * 4 != transport - network)
		return false;
	uint8_t protocol = datagram[network + (self->ipv4 ? IPV4_PROTOCOL : IPV6_NEXT_HEADER)];
	if ((self->ipv4 || transport == network + IPV6_HEADER) &&
	    protocol != (self->tcp ? PROTOCOL_TCP : PROTOCOL_UDP))
		return false;
	if (transport + own > SEGMENT_HEAD_MAX || header->segment_size == 0)
		return false;

	self->head = datagram;
	self->head_length = transport + own;
	self->network = network;
	self->transport = transport;
	self->payload = datagram + self->head_length;
	self->payload_length = length - self->head_length;
	self->segment_size = header->segment_size;
	self->partial_checksum = partial_checksum;
	if (self->ipv4)
		self->identification = get16(datagram + network + IPV4_IDENTIFICATION);
	if (self->tcp) {
		self->sequence = get32(datagram + transport + TCP_SEQUENCE);
		self->flags = datagram[transport + TCP_FLAGS];
	}
	/* The field holds the sum of the pseudo-header with the length of the whole, which the kernel
	 * knows better: a routing header names another destination (RFC 8200, section 8.1). */
	size_t field = transport + (self->tcp ? TCP_CHECKSUM : UDP_CHECKSUM);
	uint16_t whole = (uint16_t)(length - transport);
	self->pseudo_header = (uint64_t)raw16(datagram + field) + (uint16_t)~htons(whole);
	return true;
}

size_t segmentation_left(const struct segmentation *self)
{
	if (self->payload_length == 0)
		return 1;
	return (self->payload_length + self->segment_size - 1) / self->segment_size;
}

size_t segmentation_size(const struct segmentation *self)
{
	return self->payload_length < self->segment_size ? self->payload_length
							 : self->segment_size;
}

bool segmentation_skip(struct segmentation *self)
{
	uint8_t head[SEGMENT_HEAD_MAX];
	const uint8_t *payload;

	segmentation_next(self, head, &payload);
	return self->payload_length > 0;
}

size_t segmentation_next(struct segmentation *self, uint8_t *head, const uint8_t **payload)
{
	size_t length = segmentation_size(self);
	bool last = length == self->payload_length;
	size_t transport_length = self->head_length - self->transport + length;
	uint8_t *network = head + self->network;
	uint8_t *transport = head + self->transport;

	memcpy(head, self->head, self->head_length);
	if (self->ipv4) {
		size_t own = self->transport - self->network;
		put16(network + IPV4_TOTAL_LENGTH, (uint16_t)(own + transport_length));
		put16(network + IPV4_IDENTIFICATION, self->identification++);
		put16(network + IPV4_CHECKSUM, 0);
		put_checksum(network + IPV4_CHECKSUM, vela_sum(network, own));
	} else {
		size_t ahead = self->transport - self->network - IPV6_HEADER;
		put16(network + IPV6_PAYLOAD_LENGTH, (uint16_t)(ahead + transport_length));
	}
	uint8_t *field;
	if (self->tcp) {
		put32(transport + TCP_SEQUENCE, self->sequence);
		/* What ends a message belongs to its last segment; that the window was reduced is said
		 * in the first one (RFC 3168, section 6.1.2). */
		transport[TCP_FLAGS] = last ? self->flags : self->flags & ~(TCP_FIN | TCP_PSH);
		self->flags &= (uint8_t)~TCP_CWR;
		self->sequence += (uint32_t)length;
		field = transport + TCP_CHECKSUM;
	} else {
		put16(transport + UDP_LENGTH, (uint16_t)transport_length);
		field = transport + UDP_CHECKSUM;
	}
	uint64_t sum = self->pseudo_header + htons((uint16_t)transport_length);
	if (self->partial_checksum) {
		uint16_t value = vela_fold(sum);
		memcpy(field, &value, sizeof(value));
	} else {
		put16(field, 0);
		sum += vela_sum(transport, self->head_length - self->transport);
		sum += vela_sum(self->payload, length);
		if (self->tcp)
			put_checksum(field, sum);
		else
			put_checksum_never_zero(field, sum);
	}
	*payload = self->payload;
	self->payload += length;
	self->payload_length -= length;
	return length;
}
