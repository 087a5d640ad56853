/* What seals and opens a circuit's datagrams. */
#define _GNU_SOURCE
#include "cipher.h"

#include <pthread.h>
#include <string.h>

#include "window.h"

enum {
	SERIAL_SHIFT = 32,
	NUMBER_MASK = (1 << NUMBER_BITS) - 1,
	/* Numbers that stay unused where several queues send: their threads reserve at once, up to a batch each,
	 * and do not see each other's. */
	UNSEEN = 4096,
};

static const uint64_t counter_mask = UINT32_MAX;

/* For windows, by sequence. A process carries one circuit; where it has several, in tests, they may wait for
 * each other. */
static pthread_mutex_t locks[SEQUENCES] = {
	[0 ... SEQUENCES - 1] = PTHREAD_MUTEX_INITIALIZER,
};

/* CLOCK_BOOTTIME: a machine that sleeps wakes up with old keys. */
static uint64_t now_ns(const struct io *io)
{
	struct timespec now;

	io->clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* A key of the future may not be used: its page is that of another life of this machine. */
static bool is_young(const struct key *key, uint64_t now)
{
	return key->born_ns <= now && now < key->expires_ns;
}

static void drop(struct key *key)
{
	aead_close(key->aead);
	*key = (struct key){0};
}

/* Take up a slot's key; leave none where there is none, or it just changes. */
static void take_up(const struct key_slot *slot, unsigned phase, enum direction direction, uint64_t now,
		    struct key *key)
{
	bool seals = direction == AEAD_SEALS;
	uint8_t secret[AEAD_KEY], salt[AEAD_SALT];

	*key = (struct key){0};
	uint64_t serial = page_load(&slot->serial);
	if (serial == 0)
		return;
	memcpy(secret, seals ? slot->tx_key : slot->rx_key, sizeof(secret));
	memcpy(salt, seals ? slot->tx_salt : slot->rx_salt, sizeof(salt));
	struct key found = {.serial = serial,
			    .phase = phase,
			    .born_ns = slot->born_ns,
			    .expires_ns = slot->expires_ns,
			    /* A number beyond that would be one of the next sequence. */
			    .limit = slot->limit < 1 << NUMBER_BITS ? slot->limit : 1 << NUMBER_BITS};
	uint64_t suite = slot->suite;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (page_load(&slot->serial) == serial) {
		if (is_young(&found, now))
			found.aead = aead_open((enum suite)suite, secret, salt, direction);
		*key = found;
	}
	explicit_bzero(secret, sizeof(secret));
}

/* Forget a key that is too old, but not that it was. */
static void let_expire(struct key *key, uint64_t now)
{
	if (key->aead == NULL || is_young(key, now))
		return;
	aead_close(key->aead);
	key->aead = NULL;
}

bool key_page_take_over(struct key_page *page, unsigned sequence)
{
	if (page_load(&page->magic) != KEY_PAGE_MAGIC)
		return false;
	if (sequence && page_load(&page->sequences) <= sequence)
		page_store(&page->sequences, sequence + 1);
	for (unsigned phase = 0; phase < PHASES; phase++) {
		struct key_slot *slot = &page->slots[phase];
		struct sequence *own = page_sequence(page, phase, sequence);
		uint64_t serial = page_load(&slot->serial), next = page_load(&own->next);
		if (serial == 0 || next >> SERIAL_SHIFT != serial)
			continue;
		uint64_t counter = (next & counter_mask) + SKIPPED;
		uint64_t limit = page_load(&slot->limit);
		page_store(&own->next, serial << SERIAL_SHIFT | (counter < limit ? counter : limit));
	}
	return true;
}

/* Return how many of a key's numbers are used up in the other sequences, or cannot be used because of them. */
static uint64_t used_by_others(const struct sealer *self)
{
	uint64_t there = page_load(&self->page->sequences), used = 0;

	if (there == 0)
		return 0;
	for (unsigned sequence = 0; sequence < there && sequence < self->room; sequence++) {
		uint64_t next =
			page_load(&page_sequence(self->page, self->key.phase, sequence)->next);
		if (sequence != self->sequence && next >> SERIAL_SHIFT == self->key.serial)
			used += (next & counter_mask) - 1;
	}
	return used + UNSEEN;
}

/* Reserve up to count numbers that nobody has used or will use, before any is used. Returns how many, and
 * the first.
 *
 * A worker that dies with them leaves a gap, which does no harm; taken after use, they would be used twice
 * by its successor, which breaks both frames and, with AES-GCM, the key. Fewer, or none, where the key's
 * limit is reached or another key is in its slot. Atomic, as both threads of a queue do it. */
static uint64_t reserve(const struct sealer *self, struct sequence *own, uint64_t count, uint64_t octets,
			uint64_t *first)
{
	const struct key *key = &self->key;
	uint64_t others = used_by_others(self), found = page_load(&own->next), next, granted;
	uint64_t limit = others < key->limit ? key->limit - others : 0;

	do {
		next = found;
		if (next >> SERIAL_SHIFT > key->serial)
			return 0;
		if (next >> SERIAL_SHIFT < key->serial) {
			next = key->serial << SERIAL_SHIFT | 1;
			page_store(&own->octets, 0);
		}
		*first = next & counter_mask;
		if (*first >= limit)
			return 0;
		/* Only below the limit: no number can then run over into the serial. */
		granted = limit - *first < count ? limit - *first : count;
	} while (!__atomic_compare_exchange_n(&own->next, &found, next + granted, false, __ATOMIC_ACQ_REL,
					      __ATOMIC_ACQUIRE));
	__atomic_fetch_add(&own->octets, octets, __ATOMIC_RELAXED);
	return granted;
}

void sealer_close(struct sealer *self)
{
	drop(&self->key);
}

bool sealer_look(struct sealer *self)
{
	struct key_page *page = self->page;
	struct key *key = &self->key;
	uint64_t now = now_ns(self->io), sending = page_load(&page->sending);

	if (key->serial &&
	    (key->serial != sending || page_load(&page->slots[key->phase].serial) != sending))
		drop(key);
	for (unsigned phase = 0; phase < PHASES && sending && key->serial != sending; phase++) {
		struct key_slot *slot = &page->slots[phase];
		if (page_load(&slot->serial) != sending)
			continue;
		take_up(slot, phase, AEAD_SEALS, now, key);
		if (key->serial != sending) /* replaced meanwhile */
			drop(key);
		self->last = 0;
	}
	let_expire(key, now);
	uint64_t taken = key->aead ? key->serial : 0;
	if (self->acknowledges && page_load(&page->sent_with) != taken)
		page_store(&page->sent_with, taken);
	return key->aead != NULL;
}

enum sealing sealer_seal(struct sealer *self, uint8_t *at, const size_t *lengths, size_t *count,
			 struct sealed *sealed)
{
	struct key *key = &self->key;
	struct sequence *own;
	uint64_t octets = 0, first;
	size_t wanted = *count;

	*count = 0;
	if (!sealer_look(self))
		return NO_KEY;
	own = page_sequence(self->page, key->phase, self->sequence);
	for (size_t i = 0; i < wanted; i++)
		octets += CIRCUIT_ID + lengths[i];
	uint64_t granted = reserve(self, own, wanted, octets, &first);
	if (granted && first <= self->last) {
		/* Nobody may send with it any more, in no sequence. */
		page_store(&own->next, key->serial << SERIAL_SHIFT | counter_mask);
		return REUSED;
	}
	for (; *count < granted; ++*count) {
		uint64_t number = first + *count;
		uint32_t counter = (uint32_t)(self->sequence << NUMBER_BITS | number);
		size_t length = lengths[*count];
		at[0] = self->circuit_id;
		at[CIRCUIT_ID] = (uint8_t)(ENCRYPTED_BYTE | key->phase);
		put32(at + CIRCUIT_ID + PHASE, counter);
		if (!aead_seal(key->aead, counter, at + TEXT, length))
			return NO_KEY;
		self->last = number;
		sealed[*count] = (struct sealed){at, TEXT + length + AEAD_TAG};
		at += sealed[*count].length;
	}
	return granted == wanted ? SEALED : NO_KEY;
}

void opener_close(struct opener *self)
{
	for (int phase = 0; phase < PHASES; phase++)
		drop(&self->keys[phase]);
}

bool opener_look(struct opener *self)
{
	uint64_t now = now_ns(self->io);
	bool any = false;

	for (unsigned phase = 0; phase < PHASES; phase++) {
		struct key_slot *slot = &self->page->slots[phase];
		struct key *key = &self->keys[phase];
		if (key->serial != page_load(&slot->serial)) {
			drop(key);
			take_up(slot, phase, AEAD_OPENS, now, key);
		}
		let_expire(key, now);
		uint64_t taken = key->aead ? key->serial : 0;
		if (self->acknowledges && page_load(&slot->first.receives) != taken)
			page_store(&slot->first.receives, taken);
		any |= taken != 0;
	}
	return any;
}

/* Whether a datagram may be one that was not accepted before. */
static bool may_be_new(const struct sequence *seen, const struct key *key, uint32_t number)
{
	/* A window that no datagram of this key has reached is empty. A key's first number is 1. */
	return number && (page_load(&seen->window_serial) != key->serial || window_is_new(seen, number));
}

/* The same where other threads may just be changing the window: bits that are not yet cleared refuse too much. */
static bool may_be_new_to_all(const struct sequence *seen, const struct key *key, uint32_t number,
			      pthread_mutex_t *lock)
{
	if (may_be_new(seen, key, number))
		return true;
	pthread_mutex_lock(lock);
	bool new = may_be_new(seen, key, number);
	pthread_mutex_unlock(lock);
	return new;
}

/* Accept a datagram whose tag is right, once. */
static bool accept_once(const struct key_slot *slot, struct sequence *seen, const struct key *key, uint32_t number)
{
	if (page_load(&seen->window_serial) != key->serial) {
		/* A thread that is late must not begin the window of another key anew. */
		if (page_load(&slot->serial) != key->serial)
			return false;
		window_open(seen, key->serial);
	}
	if (!window_is_new(seen, number))
		return false;
	window_mark(seen, number);
	return true;
}

enum opened opener_open(struct opener *self, uint8_t **datagram, size_t *length)
{
	uint8_t *at = *datagram;

	if (*length <= CIRCUIT_ID)
		return OPENED_SHORT;
	if ((at[CIRCUIT_ID] & 0xfe) != ENCRYPTED_BYTE)
		return CLEAR;
	if (*length <= TEXT + AEAD_TAG)
		return OPENED_SHORT;
	unsigned phase = at[CIRCUIT_ID] & 1;
	struct key *key = &self->keys[phase];
	struct key_slot *slot = &self->page->slots[phase];
	uint32_t counter = get32(at + CIRCUIT_ID + PHASE);
	uint32_t sequence = counter >> NUMBER_BITS, number = counter & NUMBER_MASK;
	/* A sender that goes beyond the limit is none of ours. */
	if (key->aead == NULL || sequence >= self->sequences || number >= key->limit)
		return OPENED_NO_KEY;
	struct sequence *seen = page_sequence(self->page, phase, sequence);
	/* Before the tag, which costs more; the window is changed only behind a right one. */
	if (!(self->shares ? may_be_new_to_all(seen, key, number, &locks[sequence])
			   : may_be_new(seen, key, number)))
		return REPLAYED;
	size_t text = *length - TEXT - AEAD_TAG;
	if (!aead_open_frame(key->aead, counter, at + TEXT, text))
		return BAD_TAG;
	/* Before the frame goes to the TAP: where the worker dies in between it is lost, and cannot come
	 * twice. */
	if (self->shares)
		pthread_mutex_lock(&locks[sequence]);
	bool accepted = accept_once(slot, seen, key, number);
	if (self->shares)
		pthread_mutex_unlock(&locks[sequence]);
	if (!accepted)
		return REPLAYED;
	at[TEXT - CIRCUIT_ID] = at[0];
	*datagram = at + TEXT - CIRCUIT_ID;
	*length = CIRCUIT_ID + text;
	return OPENED;
}
