/* Frames that are larger than a datagram, in pieces and back. No I/O. Twin of vela/dataplane/pieces.py;
 * docs/protocol.md, 3.7. */
#ifndef VELA_NATIVE_PIECES_H
#define VELA_NATIVE_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum {
	PIECE_LAST = 0x80,
	PIECE_INDEX = 0x3f,
	/* Behind the data header: 0x44, index, length and number of the frame. */
	PIECE_INDEX_AT = DATA_HEADER + 1,
	PIECE_LENGTH_AT = PIECE_INDEX_AT + 1,
	PIECE_NUMBER_AT = PIECE_LENGTH_AT + 2,
	PIECE_HEADER = PIECE_NUMBER_AT + 4,
	PIECES_MAX = 64, /* of a frame: as many as one send takes (UDP_MAX_SEGMENTS, Linux 4.18) */
	/* Frames that can be incomplete at a time, and for how long. A sender numbers them in a row, so the slot
	 * of a number is that of a frame 64 before it. */
	JOIN_SLOTS = 64,
	JOIN_MS = 1000,
};

/* vela.dataplane.contract.Fragmentation: what becomes of a frame that is larger than a datagram. */
enum fragmentation { FRAGMENT_BY_IP, FRAGMENT_IN_PIECES, FRAGMENT_NEVER };

/* Pieces of one size; zeros fill up the last one. */
struct cut {
	size_t count; /* 0: they would be too many */
	size_t size;
};

/* Tell how to cut length bytes, those behind a datagram's circuit id, into two or more pieces with at most
 * room bytes each. */
struct cut cut_evenly(size_t length, size_t room);

/* Write what goes before the content of a piece: PIECE_HEADER bytes. */
void write_piece_header(uint8_t *at, uint8_t circuit_id, const struct cut *cut, size_t index, size_t length,
			uint32_t number);

/* A frame that is not complete, or the last one that was. */
struct join_slot {
	uint64_t missing; /* a bit for each piece; 0: complete, or there was none */
	uint64_t since_ms;
	uint64_t epoch; /* of the joiner, when the frame was handed on */
	uint32_t number;
	uint16_t length, size;
	uint8_t ecn; /* of the outer headers: CE if one of them has it */
};

struct joiner {
	uint8_t *memory;
	size_t room; /* of each slot: a datagram */
	uint64_t swept_ms;
	uint64_t epoch; /* counts how often all frames that were handed on were in use no longer */
	struct join_slot slots[JOIN_SLOTS];
};

/* Returns false where there is no memory. Pages that were never written to are not there. */
bool joiner_init(struct joiner *self, size_t frame_limit);
void joiner_free(struct joiner *self);

enum joining { PIECE_TAKEN, PIECE_COMPLETES, PIECE_SHORT, PIECE_MALFORMED, PIECE_OVERSIZED, PIECE_DUPLICATE };

/* Tell whether a piece would overwrite a frame that may be in use: one of the present epoch. */
bool joiner_overwrites(const struct joiner *self, const uint8_t *datagram, size_t length);

/* Remember that the frame which this piece completed is in use for the rest of the epoch. */
void joiner_keep(struct joiner *self, const uint8_t *datagram);

/* Return the outer ECN of the frame that this piece completed. */
uint8_t joiner_ecn(const struct joiner *self, const uint8_t *datagram);

/* Take a piece, which has the outer ECN ecn. If it is the one that was missing, joined is then the datagram that was cut, circuit id
 * included, in memory of the joiner. Frames that are given up are added to incomplete. */
enum joining joiner_take(struct joiner *self, const uint8_t *datagram, size_t length, uint8_t ecn, uint64_t now_ms,
			 uint8_t **joined, size_t *joined_length, uint64_t *incomplete);

#endif
