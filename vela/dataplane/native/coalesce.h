/* Joins frames that continue each other into one GSO frame, as the kernel's GRO does. No I/O.
 *
 * Only such as the kernel cuts apart again into just these frames, and only behind their own
 * checksums: a wrong one must arrive wrong. Linux, net/ipv4/tcp_offload.c, tcp_gro_receive;
 * net/ipv4/udp_offload.c, udp_gro_receive_segment. */
#ifndef VELA_NATIVE_COALESCE_H
#define VELA_NATIVE_COALESCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "frame.h"
#include "packet.h"
#include "virtio.h"

enum {
	/* As many as the kernel's own (MAX_GRO_SKBS and the sizes of GSO frames) make useful. */
	TRAIN_MAX = 64,
	TRAIN_HEAD_MAX = ETHERNET_HEADER + 2 * VLAN_TAG + IPV6_HEADER + TCP_HEADER_MAX,
};

/* Frames of one flow, each the continuation of the one before it. They stay where they are: the
 * memory behind them must not change until the coalesced is taken. */
struct coalesced {
	struct frame frames[TRAIN_MAX];
	size_t count;
	bool open; /* whether another one may be added */
	bool verified;
	bool partial_checksum; /* such as only have the sum of a pseudo-header are taken for right */
	/* Of the first frame. */
	struct transport transport;
	const uint8_t *packet;
	size_t tags; /* bytes between Ethernet and IP header */
	size_t payload_length;
	uint8_t last_flags;
	size_t length; /* of the IP packet that all would make */
	uint8_t head[sizeof(struct virtio_header) + TRAIN_HEAD_MAX];
};

/* Begin with this frame, whatever it is. The coalesced must be empty. */
void coalesce_start(struct coalesced *self, const struct frame *frame);

/* Add the frame, if it is what comes next; else leave all as it is. */
bool coalesce_add(struct coalesced *self, const struct frame *frame);

/* Describe the coalesced of two or more frames as one to write to a TAP: a head (virtio header, link
 * header, IP and transport headers), and the payloads. Returns the number of pieces, at most
 * 1 + TRAIN_MAX. */
size_t coalesce_finish(struct coalesced *self, struct iovec *pieces);

/* Tell whether a packet has all its checksums right, and as the kernel writes them; where
 * partial_checksum, or none yet. */
bool checksums_right(const uint8_t *packet, size_t length, const struct transport *transport,
		     bool partial_checksum);

#endif
