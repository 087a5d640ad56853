/* What a network card does for a frame that the kernel left unfinished: checksums, segments. No I/O.
 *
 * Linux, Documentation/networking/segmentation-offloads.rst; the results are those of the
 * kernel's own net/ipv4/tcp_offload.c and udp_offload.c, byte for byte. */
#ifndef VELA_NATIVE_SEGMENTATION_H
#define VELA_NATIVE_SEGMENTATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "virtio.h"

enum {
	/* What goes before a segment's payload, at most: circuit id, escape, Ethernet with two tags,
	 * IP and TCP; IPv6 extension headers make up the rest. A longer one is refused. */
	SEGMENT_HEAD_MAX = 512,
};

/* Complete the checksum that was left to the device; false where it is not in the frame. */
bool finish_checksum(uint8_t *frame, size_t length, const struct virtio_header *header);

/* A GSO frame that is cut into one datagram for each of its segments. */
struct segmentation {
	const uint8_t *head; /* what goes before the first payload: datagram, not frame */
	size_t head_length;
	size_t network;      /* of the IP header, from head; of what is elided there is nothing */
	size_t transport;
	const uint8_t *payload;
	size_t payload_length; /* of all segments that are left */
	size_t segment_size;   /* of each segment's payload, but the last one's */
	bool ipv4;
	bool tcp;
	bool partial_checksum; /* as the sum of the pseudo-header: the receiver completes it */
	uint64_t pseudo_header; /* its sum, without the length */
	uint32_t sequence;
	uint16_t identification;
	uint8_t flags;
};

/* Begin with a datagram (see encapsulate) that ends where its GSO frame does. network and
 * transport are offsets in it. False where the headers are not what the virtio header says. */
bool segmentation_open(struct segmentation *self, const uint8_t *datagram, size_t length,
		       size_t network, size_t transport, const struct virtio_header *header,
		       bool partial_checksum);

/* Return how many segments are left. */
size_t segmentation_left(const struct segmentation *self);

/* Return how many bytes of payload the next segment has: no other one has more. */
size_t segmentation_size(const struct segmentation *self);

/* Leave the next segment out; returns whether there is another one. */
bool segmentation_skip(struct segmentation *self);

/* Write the next segment's head, head_length bytes, and point to its payload; returns the payload's
 * length. To be called as often as segmentation_left said. */
size_t segmentation_next(struct segmentation *self, uint8_t *head, const uint8_t **payload);

#endif
