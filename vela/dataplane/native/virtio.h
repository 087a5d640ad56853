/* What goes before every frame of a TAP with IFF_VNET_HDR: what is left to do to it. Here, as build
 * machines have older headers than the kernels that run.
 *
 * Linux, include/uapi/linux/virtio_net.h; Virtual I/O Device 1.2, section 5.1.6. */
#ifndef VELA_NATIVE_VIRTIO_H
#define VELA_NATIVE_VIRTIO_H

#include <stdint.h>

/* In the machine's byte order. Offsets are from the frame's first byte. */
struct virtio_header {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t header_length; /* bytes before each segment's payload; a hint on reading */
	uint16_t segment_size;  /* bytes of payload in each segment but the last */
	uint16_t checksum_start;
	uint16_t checksum_offset; /* from there; the field holds the sum of the pseudo-header */
};

_Static_assert(sizeof(struct virtio_header) == 10, "as the kernel has it");

enum { VIRTIO_NEEDS_CHECKSUM = 1 };

enum {
	VIRTIO_GSO_NONE = 0,
	VIRTIO_GSO_TCPV4 = 1,
	VIRTIO_GSO_TCPV6 = 4,
	VIRTIO_GSO_UDP_L4 = 5, /* Linux 6.2 */
	VIRTIO_GSO_ECN = 0x80, /* a flag: the first segment has CWR */
};

#endif
