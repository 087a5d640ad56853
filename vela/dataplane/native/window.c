/* Which frames of a key have come. */
#include "window.h"

void window_open(struct sequence *self, uint64_t serial)
{
	if (page_load(&self->window_serial) == serial)
		return;
	/* A worker that dies in between leaves a window of no key, with which no frame was accepted. */
	page_store(&self->window_serial, 0);
	page_store(&self->top, 0);
	for (int i = 0; i < WINDOW_WORDS; i++)
		page_store(&self->bitmap[i], 0);
	page_store(&self->window_serial, serial);
}

bool window_is_new(const struct sequence *self, uint32_t counter)
{
	uint64_t top = page_load(&self->top);

	if (counter > top)
		return true;
	/* A key's first counter is 1. */
	if (counter == 0 || top - counter >= WINDOW)
		return false;
	return !(page_load(&self->bitmap[counter / 64 % WINDOW_WORDS]) >> counter % 64 & 1);
}

/* Clear the bits of count counters from first on. */
static void clear(struct sequence *self, uint64_t first, uint64_t count)
{
	while (count > 0) {
		uint64_t offset = first % 64, here = 64 - offset < count ? 64 - offset : count;
		uint64_t mask = (here == 64 ? UINT64_MAX : (UINT64_C(1) << here) - 1) << offset;
		uint64_t *word = &self->bitmap[first / 64 % WINDOW_WORDS];
		page_store(word, *word & ~mask);
		first += here;
		count -= here;
	}
}

void window_mark(struct sequence *self, uint32_t counter)
{
	uint64_t top = page_load(&self->top);

	/* Killed in between, a worker leaves a window that refuses too much, never too little: bits that
	 * are not yet cleared refuse counters that have not come. */
	if (counter > top) {
		page_store(&self->top, counter);
		clear(self, top + 1, counter - top < WINDOW ? counter - top : WINDOW);
	}
	uint64_t *word = &self->bitmap[counter / 64 % WINDOW_WORDS];
	page_store(word, *word | UINT64_C(1) << counter % 64);
}
