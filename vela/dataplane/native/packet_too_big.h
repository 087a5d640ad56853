/* ICMP messages that tell a sender which packets cross a circuit in one datagram. No I/O. Twin of
 * vela/dataplane/packet_too_big.py, which says where a message comes from and why. */
#ifndef VELA_NATIVE_PACKET_TOO_BIG_H
#define VELA_NATIVE_PACKET_TOO_BIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"

enum {
	TOO_BIG_RATE = 100, /* messages per second of a circuit */
	TOO_BIG_BURST = 50, /* and at once */
	ICMP_HEADER = 8,
	/* How large a message may be, with its IP header: RFC 1812, section 4.3.2.3; RFC 4443, section 2.4 (c). */
	ICMP_MAX = 576,
	ICMPV6_MAX = 1280,
	QUOTED_MAX = ICMPV6_MAX - IPV6_HEADER - ICMP_HEADER,
	TOO_BIG_LINK_MAX = ETHERNET_HEADER + 2 * VLAN_TAG,
	TOO_BIG_MAX = TOO_BIG_LINK_MAX + ICMPV6_MAX,
};

/* A token bucket. */
struct limiter {
	uint64_t level; /* thousandths of messages */
	uint64_t filled_ms;
};

void limiter_init(struct limiter *self);

/* Tell whether a message may be sent. */
bool limiter_allows(struct limiter *self, uint64_t now_ms);

/* Count a message that is sent. */
void limiter_take(struct limiter *self);

/* Write the frame that says to the sender of a packet that mtu bytes would fit: TOO_BIG_MAX bytes at most.
 * Returns its length, 0 where the sender is told nothing.
 *
 * link: what goes before the packet in its frame; its EtherType need not be there any more. Of the packet's
 * length bytes, the first QUOTED_MAX are read. */
size_t write_too_big(const uint8_t *link, size_t link_length, const uint8_t *packet, size_t length, size_t mtu,
		     uint8_t *message);

#endif
