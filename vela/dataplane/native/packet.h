/* Where the headers of a frame lie. Twin of vela/dataplane/frame.py, and what offloads need besides. */
#ifndef VELA_NATIVE_PACKET_H
#define VELA_NATIVE_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	ETHERNET_HEADER = 14, /* IEEE 802.3, 3.1.1 */
	VLAN_TAG = 4,         /* IEEE 802.1Q, 9.6 */
	IPV4_HEADER = 20,     /* RFC 791, section 3.1, without options */
	IPV6_HEADER = 40,     /* RFC 8200, section 3 */
	TCP_HEADER = 20,      /* RFC 9293, section 3.1, without options */
	UDP_HEADER = 8,       /* RFC 768 */
	TCP_HEADER_MAX = 60,
	MAX_IP_PACKET = 65535,
};

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_IPV6 = 0x86dd };
enum { PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17, PROTOCOL_ICMPV6 = 58 };

/* Offsets of fields in their headers. */
enum {
	IPV4_TOTAL_LENGTH = 2,
	IPV4_IDENTIFICATION = 4,
	IPV4_FRAGMENT = 6,
	IPV4_PROTOCOL = 9,
	IPV4_CHECKSUM = 10,
	IPV4_SOURCE = 12,
	IPV4_DESTINATION = 16,
	IPV6_PAYLOAD_LENGTH = 4,
	IPV6_NEXT_HEADER = 6,
	IPV6_SOURCE = 8,
	IPV6_DESTINATION = 24,
	TCP_SEQUENCE = 4,
	TCP_DATA_OFFSET = 12,
	TCP_FLAGS = 13,
	TCP_CHECKSUM = 16,
	UDP_LENGTH = 4,
	UDP_CHECKSUM = 6,
};

/* IPv6 extension headers that are skipped. RFC 8200, section 4. Others, such as those of IPsec, sign or hide
 * what comes behind them. */
enum { HOP_BY_HOP = 0, ROUTING = 43, DESTINATION_OPTIONS = 60, EXTENSION_UNIT = 8, EXTENSIONS_MAX = 8 };

/* RFC 9293, section 3.1; RFC 3168, section 6.1. */
enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_ACK = 0x10, TCP_ECE = 0x40, TCP_CWR = 0x80 };

static inline uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static inline void put16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static inline uint32_t get32(const uint8_t *at)
{
	return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static inline void put32(uint8_t *at, uint32_t value)
{
	put16(at, (uint16_t)(value >> 16));
	put16(at + 2, (uint16_t)value);
}

/* Tell whether these bytes are an IPv4 packet, with or without trailing padding. */
bool is_ipv4_packet(const uint8_t *packet, size_t length);

/* The same for IPv6. RFC 8200, section 3. */
bool is_ipv6_packet(const uint8_t *packet, size_t length);

/* Return where the IP header of a frame begins, behind any VLAN tags; 0 where there is none. */
size_t network_offset(const uint8_t *frame, size_t length);

static inline bool is_extension(uint8_t protocol)
{
	return protocol == HOP_BY_HOP || protocol == ROUTING || protocol == DESTINATION_OPTIONS;
}

/* Return where the first header behind IPv6's extension headers begins; protocol, which says what begins at
 * packet + at, then says what it is. Of extension headers that are too many, or not all there before end, it is
 * the first that is not skipped. */
size_t skip_extensions(const uint8_t *packet, size_t at, size_t end, uint8_t *protocol);

/* An unfragmented TCP or UDP packet that ends with its payload: no padding, no extension headers. */
struct transport {
	bool ipv4;
	bool tcp;
	size_t offset;         /* of the TCP or UDP header, from the IP header */
	size_t checksum;       /* of its checksum field, from the IP header */
	size_t payload;        /* of the first byte behind it, from the IP header */
	uint16_t pseudo_header; /* folded sum of the pseudo-header, never 0 */
};

/* Return whether a packet (see is_ipv4_packet) is one, and describe it. */
bool find_transport(const uint8_t *packet, size_t length, struct transport *found);

/* Tell whether a packet's checksum field has nothing but the sum of the pseudo-header, so that it is
 * left to be completed. */
bool is_checksum_partial(const uint8_t *packet, const struct transport *transport);

/* Return the folded sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) of
 * length bytes of transport header and payload. */
uint16_t pseudo_header_sum(const uint8_t *packet, bool ipv4, uint8_t protocol, size_t length);

#endif
