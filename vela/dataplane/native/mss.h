/* Lowers the MSS that TCP announces, so that segments fit one datagram. No I/O. Twin of vela/dataplane/mss.py.
 *
 * RFC 9293, section 3.7.1; RFC 6691: the MSS counts neither IP nor TCP options. */
#ifndef VELA_NATIVE_MSS_H
#define VELA_NATIVE_MSS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* vela.dataplane.mss.MssClamp; 0: no limit. */
struct mss_clamp {
	size_t datagram_limit; /* bytes that the packet may have, with what goes before it in a datagram */
	uint16_t mss;
};

static inline bool mss_clamp_is_on(const struct mss_clamp *self)
{
	return self->datagram_limit || self->mss;
}

/* The TCP header of a SYN, or of a SYN and ACK. */
struct syn {
	uint8_t *header;
	bool ipv4;
};

/* Tell whether an IP packet, with or without padding, is an unfragmented SYN whose TCP header is all there. */
bool find_syn(uint8_t *packet, size_t length, struct syn *found);

/* Return the largest MSS behind this many bytes of a datagram before the IP header; 0: no limit. */
uint16_t mss_limit(const struct mss_clamp *self, const struct syn *syn, size_t before);

/* Lower the MSS option to the limit. Options that are malformed stay as they are, and so do those that
 * TCP-AO signs. The checksum follows (RFC 1624), unless it is partial, as then it covers no options yet.
 * Returns whether anything changed. */
bool lower_mss(const struct syn *syn, uint16_t limit, bool partial);

#endif
