/* The key page: one circuit's keys, in memory that its worker shares with the key holder. Here is the
 * worker's side. Twin of vela/dataplane/key_page.py, which says who writes what, and why. */
#ifndef VELA_NATIVE_KEY_PAGE_H
#define VELA_NATIVE_KEY_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "aead.h"

enum {
	KEY_PAGE_ALIGNMENT = 4096,
	PHASES = 2,
	/* Of counters under one key, each with its own numbers: one for each queue that sends. */
	SEQUENCES = 8,
	NUMBER_BITS = 28, /* of a counter; the sequence is above them */
	WINDOW = 8192, /* counters */
	WINDOW_WORDS = WINDOW / 64,
};

#define KEY_PAGE_MAGIC UINT64_C(0x3159454b414c4556) /* VELAKEY1 */

/* What the worker keeps of a sequence: one line of 64 bytes for each direction. */
struct sequence {
	/* Of what it sends, by the threads of one queue. */
	uint64_t next; /* the key's serial, and in the low half the number that is reserved next */
	uint64_t octets;
	uint64_t unused_tx[6];
	/* Of what comes, by any ingress thread. */
	uint64_t receives; /* the first thread's, in the first one: the serial that it has taken up */
	uint64_t window_serial;
	uint64_t top;
	uint64_t unused_rx[5];
	uint64_t bitmap[WINDOW_WORDS];
};

/* A phase's slot. */
struct key_slot {
	/* The key holder's. A reader takes a copy for valid if serial is the same before and after. */
	uint64_t serial; /* 0: there is no key */
	uint64_t generation;
	uint64_t suite;
	uint64_t born_ns, expires_ns; /* CLOCK_BOOTTIME */
	uint64_t limit; /* counters are below it */
	uint8_t tx_salt[AEAD_SALT], rx_salt[AEAD_SALT];
	uint8_t tx_key[AEAD_KEY], rx_key[AEAD_KEY];
	/* The worker's. */
	struct sequence first;
};

struct key_page {
	/* The key holder's. */
	uint64_t magic;
	uint64_t serial;  /* the last one given */
	uint64_t sending; /* the serial of the key to send with; 0: none */
	uint64_t unused_holder[5];
	/* The worker's first egress thread's. */
	uint64_t sent_with; /* the serial that it last took up */
	/* The worker's, before its threads start. */
	uint64_t sequences; /* that any worker has sent with; 0: the first one alone */
	uint64_t unused_worker[6];
	struct key_slot slots[PHASES];
	/* Pages of before there were several sequences end about here. */
	uint64_t unused[176];
	struct sequence further[PHASES][SEQUENCES - 1];
};

_Static_assert(sizeof(struct key_slot) == 8 * 160, "as key_page.py has it");
_Static_assert(offsetof(struct key_slot, first.next) == 8 * 16, "as key_page.py has it");
_Static_assert(offsetof(struct key_slot, first.receives) == 8 * 24, "as key_page.py has it");
_Static_assert(offsetof(struct key_slot, first.bitmap) == 8 * 32, "as key_page.py has it");
_Static_assert(offsetof(struct key_page, slots) == 8 * 16, "as key_page.py has it");
_Static_assert(offsetof(struct key_page, further) == KEY_PAGE_ALIGNMENT, "as key_page.py has it");
_Static_assert(sizeof(struct key_page) <= 5 * KEY_PAGE_ALIGNMENT, "as key_page.py has it");

/* Return how many sequences fit a page of so many bytes. */
static inline unsigned page_room(size_t size)
{
	return size < sizeof(struct key_page) ? 1 : SEQUENCES;
}

static inline struct sequence *page_sequence(struct key_page *page, unsigned phase, unsigned sequence)
{
	return sequence ? &page->further[phase][sequence - 1] : &page->slots[phase].first;
}

static inline uint64_t page_load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void page_store(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

#endif
