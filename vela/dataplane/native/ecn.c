/* Congestion marks and classes of service, between inner and outer IP headers. */
#include "ecn.h"

#include "packet.h"

enum { IPV4_TOS = 1 };

/* The version of what may be malformed otherwise; 0: it has no TOS byte. */
static int version_of(const uint8_t *packet, size_t length)
{
	if (length >= IPV4_HEADER && packet[0] >> 4 == 4)
		return 4;
	return length >= IPV6_HEADER && packet[0] >> 4 == 6 ? 6 : 0;
}

static uint8_t tos_of(const uint8_t *packet, size_t length)
{
	switch (version_of(packet, length)) {
	case 4:
		return packet[IPV4_TOS];
	case 6:
		return (uint8_t)(get16(packet) >> 4);
	}
	return 0;
}

uint8_t default_tos(const struct marking *self)
{
	return self->dscp == DSCP_INHERIT ? 0 : (uint8_t)(self->dscp << DSCP_SHIFT);
}

uint8_t outer_tos(const struct marking *self, const uint8_t *frame, size_t length)
{
	uint8_t kept = self->carry_ecn ? ECN_MASK : 0;

	if (self->dscp == DSCP_INHERIT)
		kept |= (uint8_t)~ECN_MASK;
	if (kept == 0)
		return default_tos(self);
	size_t network = network_offset(frame, length);
	uint8_t inner = network ? tos_of(frame + network, length - network) : 0;
	return default_tos(self) | (inner & kept);
}

/* RFC 1624, equation 3, for the word with the TOS byte. A wrong checksum stays wrong. */
static void set_ipv4_tos(uint8_t *packet, uint8_t tos)
{
	uint32_t sum = (uint16_t)~get16(packet + IPV4_CHECKSUM) + (uint32_t)(uint16_t)~get16(packet);

	packet[IPV4_TOS] = tos;
	sum += get16(packet);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	put16(packet + IPV4_CHECKSUM, (uint16_t)~sum);
}

static void set_tos(uint8_t *packet, uint8_t tos)
{
	if (packet[0] >> 4 == 4)
		set_ipv4_tos(packet, tos);
	else
		put16(packet, (uint16_t)((get16(packet) & 0xf00f) | tos << 4));
}

bool is_network_control(const uint8_t *packet, size_t length)
{
	return tos_of(packet, length) >= NETWORK_CONTROL;
}

bool fold_ecn(uint8_t *packet, size_t length, uint8_t outer)
{
	if (version_of(packet, length) == 0)
		return true;
	uint8_t tos = tos_of(packet, length), inner = tos & ECN_MASK;
	/* RFC 6040, figure 4. A sender that is not ECN-capable would not see the mark: only a loss. */
	if (outer == ECN_CE && inner == ECN_NOT_ECT)
		return false;
	if (outer == ECN_CE || (outer == ECN_ECT1 && inner == ECN_ECT0))
		set_tos(packet, (uint8_t)((tos & ~ECN_MASK) | outer));
	return true;
}
