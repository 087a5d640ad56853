/* The key page: one circuit's keys, in memory that its worker shares with the key holder. Here is the
 * worker's side. Twin of vela/dataplane/key_page.py, which says who writes what, and why. */
#ifndef VELA_NATIVE_KEY_PAGE_H
#define VELA_NATIVE_KEY_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "aead.h"

enum {
	KEY_PAGE_SIZE = 4096,
	PHASES = 2,
	WINDOW = 8192, /* counters */
	WINDOW_WORDS = WINDOW / 64,
};

#define KEY_PAGE_MAGIC UINT64_C(0x3159454b414c4556) /* VELAKEY1 */

/* A phase's slot: one line of 64 bytes for each writer. */
struct key_slot {
	/* The key holder's. A reader takes a copy for valid if serial is the same before and after. */
	uint64_t serial; /* 0: there is no key */
	uint64_t generation;
	uint64_t suite;
	uint64_t born_ns, expires_ns; /* CLOCK_BOOTTIME */
	uint64_t limit; /* counters are below it */
	uint8_t tx_salt[AEAD_SALT], rx_salt[AEAD_SALT];
	uint8_t tx_key[AEAD_KEY], rx_key[AEAD_KEY];
	/* The worker's, by both threads. */
	uint64_t next; /* the serial, and in the low half the counter that is reserved next */
	uint64_t octets;
	uint64_t unused_tx[6];
	/* The worker's ingress thread's. */
	uint64_t receives; /* the serial of the key that it has taken up */
	uint64_t window_serial;
	uint64_t top;
	uint64_t unused_rx[5];
	uint64_t bitmap[WINDOW_WORDS];
};

struct key_page {
	/* The key holder's. */
	uint64_t magic;
	uint64_t serial;  /* the last one given */
	uint64_t sending; /* the serial of the key to send with; 0: none */
	uint64_t unused_holder[5];
	/* The worker's egress thread's. */
	uint64_t sent_with; /* the serial that it last took up */
	uint64_t unused_worker[7];
	struct key_slot slots[PHASES];
};

_Static_assert(sizeof(struct key_slot) == 8 * 160, "as key_page.py has it");
_Static_assert(offsetof(struct key_slot, next) == 8 * 16, "as key_page.py has it");
_Static_assert(offsetof(struct key_slot, receives) == 8 * 24, "as key_page.py has it");
_Static_assert(offsetof(struct key_slot, bitmap) == 8 * 32, "as key_page.py has it");
_Static_assert(offsetof(struct key_page, slots) == 8 * 16, "as key_page.py has it");
_Static_assert(sizeof(struct key_page) <= KEY_PAGE_SIZE, "one page");

static inline uint64_t page_load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void page_store(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

#endif
