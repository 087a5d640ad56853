/* Frame to datagram and back. */
#include "frame.h"

#include <string.h>

static void ethernet_header(uint8_t *header, const uint8_t *destination, const uint8_t *source,
			    uint16_t ethertype)
{
	memcpy(header, destination, 6);
	memcpy(header + 6, source, 6);
	put16(header + 12, ethertype);
}

void encapsulation_init(struct encapsulation *self, uint8_t circuit_id, const uint8_t local_mac[6],
			const uint8_t remote_mac[6], enum elision elision, size_t frame_limit)
{
	self->circuit_id = circuit_id;
	self->elision = elision;
	self->frame_limit = frame_limit;
	ethernet_header(self->sent_ipv4, remote_mac, local_mac, ETHERTYPE_IPV4);
	ethernet_header(self->sent_ipv6, remote_mac, local_mac, ETHERTYPE_IPV6);
	ethernet_header(self->received_ipv4, local_mac, remote_mac, ETHERTYPE_IPV4);
	ethernet_header(self->received_ipv6, local_mac, remote_mac, ETHERTYPE_IPV6);
}

bool can_elide(const struct encapsulation *self, const uint8_t *frame, size_t length)
{
	const uint8_t *packet = frame + ETHERNET_HEADER;
	size_t rest = length - ETHERNET_HEADER;

	switch (self->elision) {
	case ELISION_NEVER:
		return false;
	case ELISION_KNOWN:
		if (memcmp(frame, self->sent_ipv4, ETHERNET_HEADER) == 0)
			return is_ipv4_packet(packet, rest);
		if (memcmp(frame, self->sent_ipv6, ETHERNET_HEADER) == 0)
			return is_ipv6_packet(packet, rest);
		return false;
	case ELISION_ALWAYS:
		switch (get16(packet - 2)) {
		case ETHERTYPE_IPV4:
			return is_ipv4_packet(packet, rest);
		case ETHERTYPE_IPV6:
			return is_ipv6_packet(packet, rest);
		}
		return false;
	}
	return false;
}

static bool needs_escape(uint8_t first)
{
	return first >> 4 == 4 || first >> 4 == 6;
}

enum encapsulated encapsulate(const struct encapsulation *self, uint8_t *frame, size_t length,
			      bool may_elide, uint8_t **datagram)
{
	uint8_t *rest = frame;
	enum encapsulated how = COMPLETE;

	if (may_elide && can_elide(self, frame, length)) {
		rest += ETHERNET_HEADER;
		how = ELIDED;
	} else if (self->elision == ELISION_ALWAYS) {
		return NOT_IP;
	} else if (needs_escape(frame[0])) {
		*--rest = ESCAPE_BYTE;
	}
	*datagram = put_data_header(rest, self->circuit_id);
	return how;
}

enum decapsulated decapsulate(const struct encapsulation *self, const uint8_t *datagram,
			      size_t length, struct frame *frame)
{
	if (length <= DATA_HEADER)
		return TOO_SHORT;
	const uint8_t *rest = datagram + DATA_HEADER;
	size_t left = length - DATA_HEADER;

	frame->elided = false;
	frame->finished = false;
	if (rest[0] == ESCAPE_BYTE) {
		rest += ESCAPE;
		left -= ESCAPE;
	} else if (rest[0] == VERIFICATION_BYTE) {
		return VERIFICATION;
	} else if (rest[0] == PIECE_BYTE) {
		return PIECE;
	} else if (rest[0] == 0x42 || rest[0] == 0x43) {
		return RESERVED;
	} else if (rest[0] >> 4 == 4) {
		if (!is_ipv4_packet(rest, left))
			return MALFORMED;
		frame->link = self->received_ipv4;
		frame->elided = true;
	} else if (rest[0] >> 4 == 6) {
		if (!is_ipv6_packet(rest, left))
			return MALFORMED;
		frame->link = self->received_ipv6;
		frame->elided = true;
	}
	if (!frame->elided) {
		if (left < ETHERNET_HEADER)
			return TOO_SHORT;
		frame->link = rest;
		rest += ETHERNET_HEADER;
		left -= ETHERNET_HEADER;
	}
	frame->link_length = ETHERNET_HEADER;
	frame->rest = rest;
	frame->rest_length = left;
	return ETHERNET_HEADER + left > self->frame_limit ? OVERSIZED : FRAME;
}
