/* Where the headers of a frame lie. */
#include "packet.h"

#include <arpa/inet.h>
#include <string.h>

#include "checksum.h"

bool is_ipv4_packet(const uint8_t *packet, size_t length)
{
	if (length < IPV4_HEADER || packet[0] >> 4 != 4)
		return false;
	size_t header = (size_t)(packet[0] & 0x0f) * 4;
	size_t total = get16(packet + IPV4_TOTAL_LENGTH);
	return header >= IPV4_HEADER && header <= total && total <= length;
}

bool is_ipv6_packet(const uint8_t *packet, size_t length)
{
	if (length < IPV6_HEADER || packet[0] >> 4 != 6)
		return false;
	return IPV6_HEADER + (size_t)get16(packet + IPV6_PAYLOAD_LENGTH) <= length;
}

size_t network_offset(const uint8_t *frame, size_t length)
{
	for (size_t at = ETHERNET_HEADER; at <= length; at += VLAN_TAG) {
		switch (get16(frame + at - 2)) {
		case ETHERTYPE_IPV4:
		case ETHERTYPE_IPV6:
			return at;
		case 0x8100: /* IEEE 802.1Q, table 9-1 */
		case 0x88a8:
			continue;
		}
		return 0;
	}
	return 0;
}

size_t skip_extensions(const uint8_t *packet, size_t at, size_t end, uint8_t *protocol)
{
	for (int i = 0; i < EXTENSIONS_MAX && is_extension(*protocol) && at + EXTENSION_UNIT <= end; i++) {
		*protocol = packet[at];
		at += ((size_t)packet[at + 1] + 1) * EXTENSION_UNIT;
	}
	return at;
}

bool find_transport(const uint8_t *packet, size_t length, struct transport *found)
{
	uint8_t protocol;

	found->ipv4 = packet[0] >> 4 == 4;
	if (found->ipv4) {
		/* RFC 791, section 3.1: more fragments, and the offset. */
		if (get16(packet + IPV4_FRAGMENT) & 0x3fff)
			return false;
		if (get16(packet + IPV4_TOTAL_LENGTH) != length)
			return false;
		found->offset = (size_t)(packet[0] & 0x0f) * 4;
		protocol = packet[IPV4_PROTOCOL];
	} else {
		if (IPV6_HEADER + (size_t)get16(packet + IPV6_PAYLOAD_LENGTH) != length)
			return false;
		found->offset = IPV6_HEADER;
		protocol = packet[IPV6_NEXT_HEADER];
	}
	const uint8_t *header = packet + found->offset;
	size_t rest = length - found->offset;
	if (protocol == PROTOCOL_TCP) {
		if (rest < TCP_HEADER)
			return false;
		size_t own = (size_t)(header[TCP_DATA_OFFSET] >> 4) * 4;
		if (own < TCP_HEADER || own > rest)
			return false;
		found->tcp = true;
		found->checksum = found->offset + TCP_CHECKSUM;
		found->payload = found->offset + own;
	} else if (protocol == PROTOCOL_UDP) {
		if (rest < UDP_HEADER || get16(header + UDP_LENGTH) != rest)
			return false;
		found->tcp = false;
		found->checksum = found->offset + UDP_CHECKSUM;
		found->payload = found->offset + UDP_HEADER;
	} else {
		return false;
	}
	found->pseudo_header = pseudo_header_sum(packet, found->ipv4, protocol, rest);
	return true;
}

bool is_checksum_partial(const uint8_t *packet, const struct transport *transport)
{
	return memcmp(packet + transport->checksum, &transport->pseudo_header,
		      sizeof(transport->pseudo_header)) == 0;
}

uint16_t pseudo_header_sum(const uint8_t *packet, bool ipv4, uint8_t protocol, size_t length)
{
	uint64_t sum = ipv4 ? vela_sum(packet + IPV4_SOURCE, 8) : vela_sum(packet + IPV6_SOURCE, 32);
	return vela_fold(sum + htons(protocol) + htons((uint16_t)length));
}
