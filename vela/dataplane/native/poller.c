/* Both directions of a queue by one thread. */
#define _GNU_SOURCE
#include "poller.h"

#include <errno.h>

#include "counters.h"

static uint64_t now_ns(const struct poller *self)
{
	struct timespec now;

	self->ingress->io->clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Echo requests are no frames: each circuit has one a second. */
static uint64_t frames(const struct poller *self)
{
	const uint64_t *counters = self->ingress->counters;

	return counters[TX_FRAMES] + counters[RX_FRAMES];
}

void poller_init(struct poller *self, struct egress *egress, struct ingress *ingress)
{
	*self = (struct poller){.egress = egress, .ingress = ingress, .has_sent = true};
	egress->polled = ingress->polled = true;
	self->until_ns = now_ns(self) + (uint64_t)POLL_WINDOW_MS * 1000000;
}

/* Whether a send would not wait: frames that come in must not wait with it. The kernel says so as long as half
 * of the buffer is free, which is more than a batch takes. */
static bool has_room(struct poller *self)
{
	struct pollfd sending = {.fd = self->egress->send_fd, .events = POLLOUT};

	if (self->has_sent && self->egress->io->poll(&sending, 1, 0) <= 0)
		return false;
	self->has_sent = false;
	return true;
}

/* Wait for whatever there is to do. */
static int rest(struct poller *self)
{
	struct ingress *ingress = self->ingress;
	struct pollfd sources[3] = {
		{.fd = ingress->receive_fd, .events = POLLIN},
		{.fd = self->egress->tap_fd, .events = POLLIN},
		{.fd = ingress->divert_fd, .events = POLLIN},
	};
	bool encrypted = ingress->opener.page != NULL;

	if (self->has_sent) {
		sources[1].fd = self->egress->send_fd;
		sources[1].events = POLLOUT;
	}
	/* On an encrypted circuit keys are looked after, too. */
	int timeout_ms = encrypted ? ingress_look_ms(ingress) : -1;
	int ready = ingress->io->poll(sources, encrypted ? 3 : 2, timeout_ms);
	if (ready < 0 && errno != EINTR)
		return errno;
	if (ready > 0 && encrypted && sources[2].revents)
		ingress_take_handed(ingress);
	return 0;
}

int poller_turn(struct poller *self)
{
	uint64_t before = frames(self), sent = self->egress->counters[TX_FRAMES];
	int error = ingress_batch(self->ingress);

	/* What is wrong with the TAP or the socket the next call says. */
	if (!error && has_room(self))
		error = egress_batch(self->egress);
	else
		self->egress->counters[EGRESS_PROGRESS]++;
	if (error)
		return error;
	if (self->egress->counters[TX_FRAMES] != sent)
		self->has_sent = true;
	uint64_t now = now_ns(self);
	if (frames(self) != before)
		self->until_ns = now + (uint64_t)POLL_WINDOW_MS * 1000000;
	else if (now >= self->until_ns)
		return rest(self);
	else
		/* Whoever else is on this CPU: where that is the program that a frame was for, it answers sooner. */
		self->ingress->io->sched_yield();
	return 0;
}
