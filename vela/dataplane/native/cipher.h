/* What seals and opens a circuit's datagrams in its worker, with the keys of its key page. Twin of
 * vela/dataplane/cipher.py; docs/protocol.md, 3.6. */
#ifndef VELA_NATIVE_CIPHER_H
#define VELA_NATIVE_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aead.h"
#include "frame.h"
#include "io.h"
#include "key_page.h"

enum {
	ENCRYPTED_BYTE = 0x42, /* the lowest bit is the key's phase */
	PHASE = 1,
	FRAME_COUNTER = 4,
	TEXT = CIRCUIT_ID + PHASE + FRAME_COUNTER, /* where a sealed datagram's text begins */
	SEAL = PHASE + FRAME_COUNTER + AEAD_TAG,   /* what a datagram grows by */
	/* Counters that a successor leaves out. Its predecessor is dead, and what it had reserved stands
	 * in the page; should a store of it ever be missing after all, this is far more than a batch. */
	SKIPPED = 1 << 20,
	/* How long a loop waits for a frame before it looks after its keys. Under load it looks at each
	 * batch; what was wiped must not stay here where there is none, and the other end waits for the word
	 * that the first key is taken up. */
	LOOK_MS = 500,
	LOOK_FIRST_MS = 50,
};

/* A key that a thread has taken up. */
struct key {
	uint64_t serial; /* 0: none */
	unsigned phase;
	uint64_t born_ns, expires_ns, limit;
	struct aead *aead; /* NULL: none, or too old */
};

/* Leave out numbers of a sequence that the worker before may have used; it must be dead and reaped. To be
 * called for all sequences that are sent with, ahead of any thread. Returns false where this is no key page. */
bool key_page_take_over(struct key_page *page, unsigned sequence);

/* Seals a thread's datagrams. The circuit has one for each thread, since answers to echo requests leave
 * from the ingress thread. */
struct sealer {
	const struct io *io;
	struct key_page *page; /* NULL: the circuit is not encrypted */
	uint8_t circuit_id;
	bool acknowledges; /* says in the page with which key the circuit sends */
	unsigned sequence; /* less than room */
	unsigned room;	   /* of the page: page_room() */
	struct key key;
	uint64_t last; /* number that it used */
};

/* A datagram as an encrypted circuit may send it. Only sealer_seal() makes one. */
struct sealed {
	uint8_t *datagram;
	size_t length;
};

enum sealing {
	SEALED,
	NO_KEY,  /* some or all datagrams were not sealed */
	REUSED,  /* the page gave a counter that this worker has used: it must end */
};

void sealer_close(struct sealer *self);

/* Take up the key to send with, if it is another one; forget one that was wiped or is too old. Returns
 * whether there is one. */
bool sealer_look(struct sealer *self);

/* Seal *count datagrams in place, one behind the other from at on, and describe them. Of each only the
 * text is there, at TEXT bytes behind its start: lengths[i] bytes, at least one, and then AEAD_TAG bytes
 * to write to. With NO_KEY, count is how many were sealed, the first ones. */
enum sealing sealer_seal(struct sealer *self, uint8_t *at, const size_t *lengths, size_t *count,
			 struct sealed *sealed);

/* Opens the circuit's datagrams, in an ingress thread. */
struct opener {
	const struct io *io;
	struct key_page *page; /* NULL: the circuit is not encrypted */
	bool acknowledges; /* says in the page which keys the circuit receives with */
	bool shares;	   /* other threads open datagrams, too, and one of a sequence may come to any */
	unsigned sequences; /* that the remote may use: no more than the page has room for */
	struct key keys[PHASES];
};

void opener_close(struct opener *self);

/* Take up keys that are new, and forget those that were wiped or are too old. Says in the page which ones
 * it has. To be called before each batch. Returns whether there is one. */
bool opener_look(struct opener *self);

enum opened { OPENED, OPENED_SHORT, CLEAR, OPENED_NO_KEY, REPLAYED, BAD_TAG };

/* Open a datagram of the circuit in place. datagram then points to it as it was before it was sealed,
 * circuit id included, and length is its length. */
enum opened opener_open(struct opener *self, uint8_t **datagram, size_t *length);

#endif
