/* Early loss where a queue stands. */
#include "backlog.h"

static uint32_t square_root(uint64_t value)
{
	uint32_t root = 0;

	for (uint32_t bit = UINT32_C(1) << 31; bit; bit >>= 1) {
		uint64_t tried = root | bit;
		if (tried * tried <= value)
			root |= bit;
	}
	return root;
}

/* The interval by the square root of the count (RFC 8289, section 5.3), in 256ths. */
static uint64_t pause_ms(const struct backlog *self)
{
	uint64_t pause = BACKLOG_INTERVAL_MS * 256 / square_root((uint64_t)self->count << 16);

	return pause < BACKLOG_PAUSE_MS ? BACKLOG_PAUSE_MS : pause;
}

void backlog_init(struct backlog *self)
{
	*self = (struct backlog){.empty = true};
}

void backlog_ran_empty(struct backlog *self)
{
	self->empty = true;
	self->stands = false;
}

bool backlog_is_due(struct backlog *self, uint64_t now_ms)
{
	if (self->empty) {
		self->empty = false;
		self->since_ms = now_ms;
		return false;
	}
	if (self->stands) {
		if (now_ms < self->next_ms)
			return false;
		self->count++;
		self->next_ms += pause_ms(self);
		return true;
	}
	if (now_ms - self->since_ms < BACKLOG_INTERVAL_MS)
		return false;
	self->stands = true;
	uint32_t before = self->count - self->last_count;
	bool again = before > 1 && now_ms < self->next_ms + BACKLOG_MEMORY_MS;
	self->count = self->last_count = again ? before : 1;
	self->next_ms = now_ms + pause_ms(self);
	return true;
}
