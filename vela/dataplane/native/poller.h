/* Both directions of a queue by one thread, which polls for a while before it sleeps. Twin of
 * PythonDataPlane.poll_until in vela/dataplane/reference.py. */
#ifndef VELA_NATIVE_POLLER_H
#define VELA_NATIVE_POLLER_H

#include <stdbool.h>
#include <stdint.h>

#include "egress.h"
#include "ingress.h"

enum {
	/* For so long behind a frame the thread does not sleep. A packet every 20 ms, as of voice, keeps it awake. */
	POLL_WINDOW_MS = 50,
};

struct poller {
	struct egress *egress;
	struct ingress *ingress;
	uint64_t until_ns; /* when it sleeps, if no frame comes; of CLOCK_MONOTONIC */
	bool has_sent;	   /* so that there may be no room to send, until it was looked for */
};

/* Let the thread that calls poller_turn() wait in no other call. */
void poller_init(struct poller *self, struct egress *egress, struct ingress *ingress);

/* Forward what is there in both directions, up to a batch of each. Sleeps where no frame has come for a whole
 * window. Returns what egress_batch() and ingress_batch() do. */
int poller_turn(struct poller *self);

#endif
