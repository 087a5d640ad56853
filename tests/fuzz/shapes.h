/* Packets from few bytes of fuzzer input: well-formed to begin with, then damaged. */
#ifndef VELA_FUZZ_SHAPES_H
#define VELA_FUZZ_SHAPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The fuzzer's bytes; zeros behind their end. */
struct input {
	const uint8_t *at;
	size_t left;
};

unsigned take8(struct input *input);
unsigned take16(struct input *input);

enum { SHAPE_MAX = 14 + 8 + 65535 };

enum checksum {
	CHECKSUM_RIGHT,
	CHECKSUM_LEFT,
	CHECKSUM_WRONG,
	CHECKSUM_NONE,
	CHECKSUM_ONES, /* right where zero would be: its other form */
	CHECKSUM_ZERO, /* right, and zero; of UDP: none, where all ones would be right */
};

struct shape {
	bool ipv6, tcp;
	unsigned address;  /* of the link header: 0 the other end's, else another one's */
	unsigned tags;     /* 0 to 2 */
	unsigned extra_ip; /* bytes of options, or of extension headers */
	unsigned extra_tcp;
	unsigned flags;
	unsigned identification, fragment, hops;
	uint32_t sequence;
	size_t payload;
	unsigned fill; /* 0, 255: with that; else counting from there */
	enum checksum checksum;
	unsigned padding;
};

struct shape shape_take(struct input *input);

/* Write a frame of at most SHAPE_MAX bytes, from source to destination; returns its length.
 * transport is where the TCP or UDP header is. */
size_t shape_write(const struct shape *shape, const uint8_t *destination, const uint8_t *source,
		   uint8_t *frame, size_t *transport);

/* Compute the checksums of a packet again, if it is one. */
void mend(uint8_t *frame, size_t length);

#endif
