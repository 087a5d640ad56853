/* Congestion marks and classes of service, between inner and outer IP headers: RFC 6040, RFC 2983. No I/O.
 * Twin of vela/dataplane/ecn.py. */
#ifndef VELA_NATIVE_ECN_H
#define VELA_NATIVE_ECN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The two lowest bits of the TOS byte. RFC 3168, section 5. */
enum { ECN_NOT_ECT = 0, ECN_ECT1 = 1, ECN_ECT0 = 2, ECN_CE = 3, ECN_MASK = 3 };

enum {
	DSCP_INHERIT = -1, /* that of the inner packet */
	DSCP_SHIFT = 2,
	NETWORK_CONTROL = 48 << DSCP_SHIFT, /* CS6, the class of routing protocols (RFC 4594, section 3.2) */
};

/* What the outer headers of a circuit's frames say. */
struct marking {
	int dscp;	 /* or DSCP_INHERIT */
	bool carry_ecn;	 /* the remote brings the outer ECN back into the inner header */
	bool outer_ipv4; /* else IPv6 */
};

/* Return the outer TOS byte that the sending socket has by itself. */
uint8_t default_tos(const struct marking *self);

/* Return the outer TOS byte of a frame of length bytes. */
uint8_t outer_tos(const struct marking *self, const uint8_t *frame, size_t length);

/* Tell whether a packet is of the class of routing protocols, or a higher one. */
bool is_network_control(const uint8_t *packet, size_t length);

/* Bring the outer ECN into the header of the inner packet, of length bytes, if it is IPv4 or IPv6. False: the
 * packet is to be dropped (RFC 6040, section 4.2). */
bool fold_ecn(uint8_t *packet, size_t length, uint8_t outer);

#endif
