/* Frames TAP to UDP, a batch at a time. Twin of PythonDataPlane.egress in vela/dataplane/reference.py. */
#ifndef VELA_NATIVE_EGRESS_H
#define VELA_NATIVE_EGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "backlog.h"
#include "cipher.h"
#include "ecn.h"
#include "frame.h"
#include "io.h"
#include "mss.h"
#include "packet_too_big.h"
#include "pieces.h"
#include "segmentation.h"
#include "source_address.h"
#include "virtio.h"

enum {
	/* Reads of the TAP in a batch. Every kernel with UDP_SEGMENT takes as many datagrams in one
	 * send (UDP_MAX_SEGMENTS, Linux 4.18). */
	BATCH = 64,
	/* Bytes of frames behind which a batch ends where the same thread receives: they fit the sending socket,
	 * and what comes in does not wait for longer. */
	POLLED_BATCH = 65536,
	RUN_MAX = 64,
	/* Seconds for which a refusal of the kernel's is remembered: routes become wider again, and one more
	 * costs a system call. */
	REFUSED_S = 2,
	/* A connected socket reports what ICMP said of an earlier datagram instead of sending this one.
	 * Anybody can send that, so one more try may meet the next one. */
	SEND_TRIES = 4,
	MAX_UDP_PAYLOAD = MAX_IP_PACKET - IPV4_HEADER - UDP_HEADER,
	/* Room before a frame: the virtio header, which is read and then overwritten. */
	FRAME_OFFSET = 16,
	/* A frame at the largest: an IP packet behind Ethernet with two tags. */
	FRAME_MAX = ETHERNET_HEADER + 2 * VLAN_TAG + MAX_IP_PACKET,
	/* Small frames of a batch lie beside each other, behind them there is room for any one. Pages
	 * that were never written to are not there. */
	EGRESS_BUFFER = 2 * (FRAME_OFFSET + FRAME_MAX + 1),
	/* A run, sealed: below MAX_UDP_PAYLOAD, and one datagram of any size that ends it. */
	SEALED_BUFFER = 2 * MAX_UDP_PAYLOAD,
	PIECES_BUFFER = 2 * MAX_UDP_PAYLOAD, /* likewise */
	/* Of a datagram without its circuit id: larger ones travel alone, as little would be saved. */
	BUNDLED_MAX = 512,
	/* Of a bundle's datagram, sealed: each path takes it over IPv6. Larger ones would save little more. */
	BUNDLE_MAX = 1232,
	BUNDLE_SLOTS = RUN_MAX + 1, /* all that a run can have, and one that is filled */
};

/* A datagram that waits to be sent: one piece, or a head and a payload. */
struct datagram {
	struct iovec pieces[2];
	size_t length; /* on the wire, where it may be sealed */
	unsigned frames; /* that are lost with it */
};

/* Small frames of an encrypted circuit that travel in one datagram: docs/protocol.md, 3.10. */
struct bundle {
	uint8_t (*slots)[BUNDLE_MAX]; /* NULL: there are none */
	unsigned slot;		      /* the one that is filled */
	size_t used;		      /* bytes of it */
	unsigned frames;
	uint8_t tos; /* of all */
};

struct egress {
	const struct io *io;
	struct encapsulation encapsulation;
	int tap_fd;
	int send_fd;
	size_t virtio_header; /* bytes before each frame of the TAP, or 0 */
	bool partial_checksums; /* the remote completes inner checksums; docs/protocol.md, 3.5 */
	bool nowait;  /* the TAP's descriptor blocks, and RWF_NOWAIT works on it; else it does not block */
	bool polled;  /* no read of the TAP waits: see poller.h */
	bool segment; /* UDP_SEGMENT works */
	struct backlog backlog; /* of what the TAP has to give */
	struct mss_clamp mss_clamp;
	enum fragmentation fragmentation;
	size_t bundle_limit;   /* bytes of a sealed datagram with several frames; 0: there are none */
	bool packet_too_big;   /* senders hear of packets that are too large for a datagram */
	struct limiter limiter;
	bool watches_size;     /* something else is done about datagrams that are too large than to send them */
	uint32_t frame_number; /* of the next frame that is cut into pieces */
	uint32_t skipped_numbers; /* behind each: those of other queues */
	size_t route_limit;    /* the largest datagram that the route takes in one piece, as it was */
	size_t datagram_limit; /* as it was last seen to be */
	size_t segment_limit;  /* larger datagrams are sent one by one */
	time_t refused_until;  /* when the limits are looked at again; 0: they are as they were */
	struct sockaddr_storage destination;
	socklen_t destination_length; /* 0: the socket is connected */
	struct source_address source_address;
	struct marking marking;
	uint8_t tos;	 /* of the frame that is taken */
	uint8_t run_tos; /* of all datagrams of the run: one send has one */
	uint64_t *counters;
	struct sealer sealer; /* without a page: the circuit is not encrypted */
	uint8_t *sealed;      /* the run's datagrams, on an encrypted circuit */
	int failure;	      /* errno for the caller, where the worker must end */
	/* The run that is put together: datagrams of one size, the last one may be shorter. */
	struct datagram run[RUN_MAX];
	size_t run_count;
	size_t run_octets;
	uint8_t (*heads)[SEGMENT_HEAD_MAX];
	struct bundle bundle;
	uint8_t *pieces; /* of the run, each with its header */
	size_t pieces_used;
	uint8_t *buffer;
	size_t used; /* of the buffer */
};

/* Returns false where there is no memory. */
bool egress_init(struct egress *self);
void egress_free(struct egress *self);

/* Wait for a frame, or a signal, and forward it and those behind it. Returns 0, or what errno says of the TAP, or
 * EKEYREVOKED: see REUSED in cipher.h. */
int egress_batch(struct egress *self);

/* Take a frame of length bytes that lies FRAME_OFFSET behind what the TAP gave; it and its datagrams
 * are in use until egress_flush(). */
void egress_frame(struct egress *self, uint8_t *frame, size_t length,
		  const struct virtio_header *header);
void egress_flush(struct egress *self);

#endif
