/* Frames UDP to TAP, a batch at a time. Twin of PythonDataPlane.ingress in vela/dataplane/reference.py. */
#ifndef VELA_NATIVE_INGRESS_H
#define VELA_NATIVE_INGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "cipher.h"
#include "coalesce.h"
#include "ecn.h"
#include "frame.h"
#include "io.h"
#include "mss.h"
#include "pieces.h"
#include "source_address.h"

enum {
	/* Buffers that are received into by one call: where UDP GRO joins datagrams, which fill one, and
	 * where each has one for itself (64 carried a fifth more than 16). Pages that were never written to
	 * are not there. */
	RECEIVE_SLOTS = 16,
	RECEIVE_SLOTS_SINGLE = 64,
	RECEIVE_SLOT = 65536,
	/* More bytes than this at once are forwarded before others are received: they then still are in
	 * the processor's cache. */
	BULK = 16384,
	/* Batches between two looks at what the supervisor hands over, and how many datagrams at once. */
	HANDED_INTERVAL = 8,
	HANDED_MAX = 16,
	/* Byte 0 of what the supervisor hands over to be sealed and sent: no circuit has this id. */
	TO_BE_SENT = 0,
};

struct ingress {
	const struct io *io;
	struct encapsulation encapsulation;
	int tap_fd;
	int receive_fd;
	int send_fd; /* for echo requests, and answers to them */
	int divert_fd;
	size_t virtio_header; /* bytes before each frame of the TAP, or 0: then none are joined */
	bool partial_checksums; /* elided packets may have only their pseudo-header's sum */
	struct mss_clamp mss_clamp;
	bool coalesce_tcp, coalesce_udp; /* as long as the kernel takes them */
	bool gro; /* the kernel joins datagrams of a size into one buffer */
	struct sockaddr_storage destination;
	socklen_t destination_length; /* 0: the socket is connected */
	struct source_address source_address;
	uint64_t *counters;
	struct opener opener; /* without a page: the circuit is not encrypted */
	struct sealer sealer; /* for echoes; likewise */
	bool polled; /* no receive waits: see poller.h */
	unsigned batches;
	int failure;	      /* errno for the caller, where the worker must end */
	struct coalesced coalesced;
	struct joiner joiner;
	uint8_t outer_ecn; /* of the datagrams that are taken */
	bool bulk; /* whether the last receive gave so much */
	uint8_t *buffer;
};

/* Returns false where there is no memory. */
bool ingress_init(struct ingress *self);
void ingress_free(struct ingress *self);

/* Wait for a datagram, or a signal, and forward it and those behind it. Returns 0, or what errno says of the
 * socket, where that is lost, or EKEYREVOKED: see REUSED in cipher.h. */
int ingress_batch(struct ingress *self);

/* Of an encrypted circuit: take what the supervisor hands over; return how long nothing may look after keys. */
void ingress_take_handed(struct ingress *self);
int ingress_look_ms(struct ingress *self);

/* Take what one receive gave: datagrams of size bytes each, the last one may be shorter. What it
 * holds is in use until ingress_flush(). */
void ingress_datagrams(struct ingress *self, uint8_t *data, size_t length, size_t size);
void ingress_flush(struct ingress *self);

#endif
