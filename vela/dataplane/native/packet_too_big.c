/* ICMP messages that tell a sender which packets cross a circuit in one datagram. */
#include "packet_too_big.h"

#include <string.h>

#include "checksum.h"

enum {
	IPV4_MTU_MIN = 68,   /* RFC 791, section 3.2 */
	IPV6_MTU_MIN = 1280, /* RFC 8200, section 5: smaller ones are the link's own to cut */
	DONT_FRAGMENT = 0x4000,
	FRAGMENT_OFFSET = 0x1fff,
	FRAGMENT_HEADER = 44, /* RFC 8200, section 4.5 */
	TOO_BIG_CONTROL = 0xc0,	/* RFC 1812, section 4.3.2.5: precedence of internetwork control */
	TOO_BIG_HOPS = 64,
	/* RFC 792; RFC 4443, sections 2.4 (e) and 3.2 */
	ICMP_UNREACHABLE = 3,
	ICMP_FRAGMENTATION_NEEDED = 4,
	ICMPV6_PACKET_TOO_BIG = 2,
	ICMPV6_INFORMATIONAL = 128, /* and above */
	ICMPV6_REDIRECT = 137,
};

void limiter_init(struct limiter *self)
{
	*self = (struct limiter){.level = TOO_BIG_BURST * 1000};
}

bool limiter_allows(struct limiter *self, uint64_t now_ms)
{
	uint64_t filled = self->level + (now_ms - self->filled_ms) * TOO_BIG_RATE;

	self->level = filled < TOO_BIG_BURST * 1000 ? filled : TOO_BIG_BURST * 1000;
	self->filled_ms = now_ms;
	return self->level >= 1000;
}

void limiter_take(struct limiter *self)
{
	self->level -= 1000;
}

static void put_checksum(uint8_t *field, uint64_t sum)
{
	uint16_t value = (uint16_t)~vela_fold(sum);
	memcpy(field, &value, sizeof(value));
}

/* Tell whether it can be one host's: not 0/8, 127/8, 224/4 or 240/4 (RFC 1812, 5.3.7). */
static bool is_unicast(const uint8_t *address)
{
	return address[0] > 0 && address[0] < 224 && address[0] != 127;
}

static bool is_unicast_v6(const uint8_t *address)
{
	static const uint8_t none[15];

	return address[0] != 0xff && (memcmp(address, none, sizeof(none)) != 0 || address[15] > 1);
}

/* RFC 792, RFC 950, RFC 1256: the others report errors. Linux takes unknown ones for such, too
 * (net/ipv4/icmp.c, __icmp_send). */
static bool is_query(uint8_t type)
{
	return type == 0 || (type >= 8 && type <= 10) || (type >= 13 && type <= 18);
}

/* Tell whether a packet, of which length bytes are there, is an ICMPv6 error, or does not say what it is. */
static bool may_be_error(const uint8_t *packet, size_t length)
{
	uint8_t protocol = packet[IPV6_NEXT_HEADER];
	size_t at = skip_extensions(packet, IPV6_HEADER, length, &protocol);

	if (protocol == FRAGMENT_HEADER && at + EXTENSION_UNIT <= length) {
		if (get16(packet + at + 2) & ~7) /* not the first one */
			return true;
		protocol = packet[at];
		at = skip_extensions(packet, at + EXTENSION_UNIT, length, &protocol);
	}
	if (protocol == FRAGMENT_HEADER || is_extension(protocol))
		return true;
	if (protocol != PROTOCOL_ICMPV6)
		return false;
	return at >= length || packet[at] < ICMPV6_INFORMATIONAL || packet[at] == ICMPV6_REDIRECT;
}

/* Write the ICMP header, but for its checksum, and the quotation; returns how long they are. */
static size_t write_icmp(uint8_t *icmp, uint8_t type, uint8_t code, size_t mtu, const uint8_t *packet, size_t quoted)
{
	icmp[0] = type;
	icmp[1] = code;
	put16(icmp + 2, 0);
	put32(icmp + 4, (uint32_t)mtu);
	memcpy(icmp + ICMP_HEADER, packet, quoted);
	return ICMP_HEADER + quoted;
}

/* Returns the length of the IP packet that it writes, or 0. */
static size_t write_ipv4(uint8_t *ip, const uint8_t *packet, size_t mtu)
{
	size_t length = get16(packet + IPV4_TOTAL_LENGTH);
	size_t header = (size_t)(packet[0] & 0x0f) * 4;
	uint16_t fragment = get16(packet + IPV4_FRAGMENT);

	if (mtu < IPV4_MTU_MIN || length <= mtu || !(fragment & DONT_FRAGMENT) || fragment & FRAGMENT_OFFSET)
		return 0;
	if (!is_unicast(packet + IPV4_SOURCE) || !is_unicast(packet + IPV4_DESTINATION))
		return 0;
	if (packet[IPV4_PROTOCOL] == PROTOCOL_ICMP && (header >= length || !is_query(packet[header])))
		return 0;
	size_t quoted = ICMP_MAX - IPV4_HEADER - ICMP_HEADER;
	uint8_t *icmp = ip + IPV4_HEADER;
	size_t total = write_icmp(icmp, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, mtu, packet,
				  length < quoted ? length : quoted);
	put_checksum(icmp + 2, vela_sum(icmp, total));
	memset(ip, 0, IPV4_HEADER);
	ip[0] = 0x45;
	ip[1] = TOO_BIG_CONTROL;
	put16(ip + IPV4_TOTAL_LENGTH, (uint16_t)(IPV4_HEADER + total));
	put16(ip + IPV4_FRAGMENT, DONT_FRAGMENT);
	ip[8] = TOO_BIG_HOPS;
	ip[IPV4_PROTOCOL] = PROTOCOL_ICMP;
	memcpy(ip + IPV4_SOURCE, packet + IPV4_DESTINATION, 4);
	memcpy(ip + IPV4_DESTINATION, packet + IPV4_SOURCE, 4);
	put_checksum(ip + IPV4_CHECKSUM, vela_sum(ip, IPV4_HEADER));
	return IPV4_HEADER + total;
}

static size_t write_ipv6(uint8_t *ip, const uint8_t *packet, size_t mtu)
{
	size_t length = IPV6_HEADER + (size_t)get16(packet + IPV6_PAYLOAD_LENGTH);

	if (mtu < IPV6_MTU_MIN)
		mtu = IPV6_MTU_MIN;
	if (length <= mtu || !is_unicast_v6(packet + IPV6_SOURCE) || !is_unicast_v6(packet + IPV6_DESTINATION))
		return 0;
	size_t quoted = length < QUOTED_MAX ? length : QUOTED_MAX;
	if (may_be_error(packet, quoted))
		return 0;
	uint8_t *icmp = ip + IPV6_HEADER;
	size_t total = write_icmp(icmp, ICMPV6_PACKET_TOO_BIG, 0, mtu, packet, quoted);
	put32(ip, UINT32_C(6) << 28 | TOO_BIG_CONTROL << 20);
	put16(ip + IPV6_PAYLOAD_LENGTH, (uint16_t)total);
	ip[IPV6_NEXT_HEADER] = PROTOCOL_ICMPV6;
	ip[7] = TOO_BIG_HOPS;
	memcpy(ip + IPV6_SOURCE, packet + IPV6_DESTINATION, 16);
	memcpy(ip + IPV6_DESTINATION, packet + IPV6_SOURCE, 16);
	put_checksum(icmp + 2, vela_sum(icmp, total) + pseudo_header_sum(ip, false, PROTOCOL_ICMPV6, total));
	return IPV6_HEADER + total;
}

size_t write_too_big(const uint8_t *link, size_t link_length, const uint8_t *packet, size_t length, size_t mtu,
		     uint8_t *message)
{
	uint8_t *ip = message + link_length;
	uint16_t ethertype;
	size_t written;

	/* Nothing for group addresses. */
	if (link_length > TOO_BIG_LINK_MAX || link[0] & 1 || link[6] & 1)
		return 0;
	if (is_ipv4_packet(packet, length)) {
		ethertype = ETHERTYPE_IPV4;
		written = write_ipv4(ip, packet, mtu);
	} else if (is_ipv6_packet(packet, length)) {
		ethertype = ETHERTYPE_IPV6;
		written = write_ipv6(ip, packet, mtu);
	} else {
		return 0;
	}
	if (written == 0)
		return 0;
	memcpy(message, link + 6, 6);
	memcpy(message + 6, link, 6);
	memcpy(message + 12, link + 12, link_length - ETHERNET_HEADER);
	put16(message + link_length - 2, ethertype);
	return link_length + written;
}
