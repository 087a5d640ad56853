/* Early loss where a queue stands: CoDel (RFC 8289) without the time that frames have waited. No I/O.
 * Twin of vela/dataplane/backlog.py.
 *
 * A TAP does not tell how long a frame has waited, but its reader sees when nothing is left. A queue that does
 * not run empty for a whole interval is no burst: it stands, and does nothing but delay. */
#ifndef VELA_NATIVE_BACKLOG_H
#define VELA_NATIVE_BACKLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	/* How long frames may queue without a moment when there are none. About the longest round trip of the
	 * connections that share the queue: one with a longer one cannot react in time (RFC 8289, section 3.2). */
	BACKLOG_INTERVAL_MS = 100,
	/* Losses follow each other no faster. */
	BACKLOG_PAUSE_MS = 4,
	/* A queue that stands again so soon needs about as many losses as before (RFC 8289, section 5.5). */
	BACKLOG_MEMORY_MS = 16 * BACKLOG_INTERVAL_MS,
	/* Shorter frames are never lost: acknowledgements, voice, ARP. They are not what the queue is made of. */
	BACKLOG_FRAME = 512,
};

struct backlog {
	uint64_t since_ms;   /* when the queue began */
	uint64_t next_ms;    /* of the next loss, where it stands */
	uint32_t count;	     /* of losses since it stands, or as good as */
	uint32_t last_count; /* with which it began to stand */
	bool empty;	     /* it was seen to be so, and nothing was read since */
	bool stands;
};

void backlog_init(struct backlog *self);

/* Nothing is left to be read. */
void backlog_ran_empty(struct backlog *self);

/* Tell whether something of a frame is to be lost that is read now. */
bool backlog_is_due(struct backlog *self, uint64_t now_ms);

#endif
