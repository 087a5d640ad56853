/* Frame to datagram and back, for one circuit. No I/O. Twin of vela/dataplane/frame.py;
 * docs/protocol.md, section 3. */
#ifndef VELA_NATIVE_FRAME_H
#define VELA_NATIVE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"

enum {
	CIRCUIT_ID = 1,
	DATA_HEADER = CIRCUIT_ID, /* goes before each frame: put_data_header() */
	ESCAPE = 1,
	HEADROOM = DATA_HEADER + ESCAPE, /* bytes that go before a frame on the wire, at most */
	ESCAPE_BYTE = 0x40,
	VERIFICATION_BYTE = 0x41,
	PIECE_BYTE = 0x44,
	/* Under a seal, where no datagram can be sealed again: docs/protocol.md, 3.10. */
	BUNDLE_BYTE = 0x42,
	BUNDLE = 1,	    /* goes before all frames of a bundle */
	BUNDLED_LENGTH = 2, /* goes before each, and is that of the text behind it */
	VERIFICATION_HEADER = DATA_HEADER + 1 + 1 + 8 + 8, /* docs/protocol.md, section 5 */
	ECHO_REQUEST = 1,
	ECHO_REPLY = 2,
};

/* vela.dataplane.frame.Elision */
enum elision { ELISION_NEVER, ELISION_KNOWN, ELISION_ALWAYS };

/* Write the data header before a frame, and return where it begins. Its twin is in vela/wire.py. */
static inline uint8_t *put_data_header(uint8_t *frame, uint8_t circuit_id)
{
	uint8_t *start = frame - DATA_HEADER;

	*start = circuit_id;
	return start;
}

struct encapsulation {
	uint8_t circuit_id;
	enum elision elision;
	size_t frame_limit; /* bytes */
	/* The Ethernet headers that are left out of what is sent, and put before what came. */
	uint8_t sent_ipv4[ETHERNET_HEADER], sent_ipv6[ETHERNET_HEADER];
	uint8_t received_ipv4[ETHERNET_HEADER], received_ipv6[ETHERNET_HEADER];
};

void encapsulation_init(struct encapsulation *self, uint8_t circuit_id, const uint8_t local_mac[6],
			const uint8_t remote_mac[6], enum elision elision, size_t frame_limit);

/* Tell whether a frame's Ethernet header is one that its receiver can put back. */
bool can_elide(const struct encapsulation *self, const uint8_t *frame, size_t length);

enum encapsulated { COMPLETE, ELIDED, NOT_IP };

/* Write what goes before a frame of at least ETHERNET_HEADER bytes, and point datagram there: into
 * the HEADROOM bytes before it, or over what is elided. NOT_IP: the remote has no use for it,
 * nothing is written. */
enum encapsulated encapsulate(const struct encapsulation *self, uint8_t *frame, size_t length,
			      bool may_elide, uint8_t **datagram);

enum decapsulated { FRAME, VERIFICATION, PIECE, TOO_SHORT, RESERVED, OVERSIZED, MALFORMED };

/* A frame in two pieces: its link header, which may stand elsewhere, and the rest. */
struct frame {
	const uint8_t *link;
	size_t link_length;
	const uint8_t *rest;
	size_t rest_length;
	bool elided;
	bool finished; /* its checksum is complete, even if it looks partial */
};

/* Find the frame in a datagram of the circuit, of length bytes. */
enum decapsulated decapsulate(const struct encapsulation *self, const uint8_t *datagram,
			      size_t length, struct frame *frame);

#endif
