/* Fuzzes what seals and opens datagrams, with valid keys: a datagram is opened once, as it was sealed, by
 * the key that it was sealed with, and nothing else is opened. Datagrams arrive in any order, many times,
 * changed, cut off, longer, with keys replaced, wiped, too old or used up meanwhile. One queue sends, or several.
 *
 * Input: a byte, whether several queues send; and records, see take_record(). */
#define _GNU_SOURCE
#include "../../vela/dataplane/native/cipher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "shapes.h"

enum { ID = 7, RECORDS = 400, DATAGRAMS = 600, LIFETIME_NS = 1000, BATCH_MAX = 64, QUEUES_MAX = 3 };

/* Numbers that stay unused where several queues send. */
enum { UNUSED = 4096 };

/* A generation: its keys are made of its number. */
struct generation {
	unsigned number;
	uint64_t born, expires, limit;
	bool there; /* the page has it */
};

struct datagram {
	uint8_t *sealed, *clear;
	size_t length;
	unsigned number, phase;
	uint32_t counter;
};

static struct {
	_Alignas(KEY_PAGE_ALIGNMENT) struct key_page pages[2];
	unsigned queues;
	struct sealer sealers[QUEUES_MAX];
	struct opener opener;
	uint64_t now;
	unsigned generations;
	uint64_t serial;
	/* What the two pages have, and which counters of the receiver's were opened. */
	struct generation sends[PHASES], receives[PHASES];
	int sending; /* the phase; -1: none */
	uint32_t next[QUEUES_MAX];
	uint32_t opened[PHASES][QUEUES_MAX][RECORDS * 2];
	size_t opened_count[PHASES][QUEUES_MAX];
	struct datagram datagrams[DATAGRAMS];
	size_t count;
	struct list kept;
} test;

/* Of all inputs, to show that what is tried does happen. */
static struct {
	unsigned long long sealed, opened, replayed, bad_tag, no_key, clear, short_;
} total;

static void sum_up(void)
{
	fprintf(stderr, "reached: sealed %llu, opened %llu, replayed %llu, bad tag %llu, no key %llu, "
			"clear %llu, short %llu\n",
		total.sealed, total.opened, total.replayed, total.bad_tag, total.no_key, total.clear,
		total.short_);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	atexit(sum_up);
	return 0;
}

static int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
	ENSURE(clock == CLOCK_BOOTTIME);
	*now = (struct timespec){.tv_nsec = (long)test.now};
	return 0;
}

static const struct io fuzz_io = {.clock_gettime = fuzz_clock_gettime};

static struct key_page *page(int which)
{
	return &test.pages[which];
}

/* As key_page.py does it. Receivers and senders have the same keys, and nothing but these matters. */
static void install(int which, unsigned phase, const struct generation *generation)
{
	struct key_slot *slot = &page(which)->slots[phase];
	uint8_t secret = (uint8_t)generation->number;

	slot->serial = 0;
	slot->suite = 1 + generation->number % 2;
	slot->born_ns = generation->born;
	slot->expires_ns = generation->expires;
	slot->limit = generation->limit;
	memset(slot->tx_key, secret, AEAD_KEY);
	memset(slot->rx_key, secret, AEAD_KEY);
	memset(slot->tx_salt, secret, AEAD_SALT);
	memset(slot->rx_salt, secret, AEAD_SALT);
	slot->serial = ++test.serial;
}

static bool usable(const struct generation *generation)
{
	return generation->there && generation->born <= test.now && test.now < generation->expires;
}

static bool was_opened(unsigned phase, unsigned sequence, uint32_t number)
{
	uint32_t top = 0;

	for (size_t i = 0; i < test.opened_count[phase][sequence]; i++) {
		uint32_t each = test.opened[phase][sequence][i];
		if (each == number)
			return true;
		top = each > top ? each : top;
	}
	return number == 0 || (number < top && top - number >= 8192);
}

/* What is to become of a datagram; of is the one that it is a copy of, if it is one. */
static enum opened expect(const uint8_t *data, size_t length, const struct datagram *of)
{
	if (length < 2)
		return OPENED_SHORT;
	if (data[1] != 0x42 && data[1] != 0x43)
		return CLEAR;
	if (length < 2 + 4 + 1 + 16)
		return OPENED_SHORT;
	unsigned phase = data[1] - 0x42;
	unsigned sequence = (unsigned)read16(data + 2) >> 12;
	uint32_t number = (uint32_t)((read16(data + 2) & 0xfff) << 16 | read16(data + 4));
	const struct generation *has = &test.receives[phase];
	if (!usable(has) || sequence >= test.queues || number >= has->limit)
		return OPENED_NO_KEY;
	if (was_opened(phase, sequence, number))
		return REPLAYED;
	return of && of->number == has->number ? OPENED : BAD_TAG;
}

/* Let a datagram come, in memory of its own, with not a byte more than it has. */
static void deliver(const uint8_t *data, size_t length)
{
	const struct datagram *of = NULL;

	for (size_t i = 0; i < test.count && !of; i++) {
		const struct datagram *each = &test.datagrams[i];
		/* Its id is not covered: the steering has looked at it. */
		if (each->length == length && length && memcmp(each->sealed + 1, data + 1, length - 1) == 0)
			of = each;
	}
	enum opened expected = expect(data, length, of);
	uint8_t *memory = malloc(length ? length : 1), *datagram = memory;
	size_t left = length;
	memcpy(memory, data, length);
	opener_look(&test.opener);
	enum opened got = opener_open(&test.opener, &datagram, &left);
	ENSURE(got == expected);
	if (got == OPENED) {
		ENSURE(left == length - 21 && datagram == memory + 5);
		ENSURE(datagram[0] == data[0] && memcmp(datagram + 1, of->clear, left - 1) == 0);
		unsigned sequence = of->counter >> 28;
		test.opened[of->phase][sequence][test.opened_count[of->phase][sequence]++] =
			of->counter & ((1 << 28) - 1);
	}
	free(memory);
	total.opened += got == OPENED;
	total.replayed += got == REPLAYED;
	total.bad_tag += got == BAD_TAG;
	total.no_key += got == OPENED_NO_KEY;
	total.clear += got == CLEAR;
	total.short_ += got == OPENED_SHORT;
}

/* Below which number a queue may seal. */
static uint64_t limit_of(const struct generation *with, unsigned queue)
{
	uint64_t others = test.queues > 1 ? UNUSED : 0;

	for (unsigned each = 0; each < test.queues; each++)
		others += each == queue ? 0 : test.next[each] - 1;
	return others < with->limit ? with->limit - others : 0;
}

static void take_seal(struct input *input)
{
	size_t lengths[BATCH_MAX], count = 1 + take8(input) % BATCH_MAX, octets = 0;
	unsigned size = take16(input) % 1600, fill = take8(input), queue = fill % test.queues;
	struct sealed sealed[BATCH_MAX];

	if (test.count + count > DATAGRAMS)
		return;
	for (size_t i = 0; i < count; i++) {
		lengths[i] = 1 + size - (i * 3 < size ? i * 3 : size);
		octets += 6 + lengths[i] + 16;
	}
	uint8_t *memory = malloc(octets), *clear = keep(octets), *at = memory;
	for (size_t i = 0; i < octets; i++)
		memory[i] = clear[i] = (uint8_t)(fill + i * 5);
	size_t done = count;
	enum sealing how = sealer_seal(&test.sealers[queue], memory, lengths, &done, sealed);

	const struct generation *with = test.sending < 0 ? NULL : &test.sends[test.sending];
	size_t expected = 0;
	if (with && usable(with) && test.next[queue] < limit_of(with, queue)) {
		expected = limit_of(with, queue) - test.next[queue];
		expected = expected < count ? expected : count;
	}
	ENSURE(done == expected && how == (expected == count ? SEALED : NO_KEY));
	for (size_t i = 0; i < done; i++) {
		size_t length = lengths[i] + 22;
		ENSURE(sealed[i].datagram == at && sealed[i].length == length);
		ENSURE(at[0] == ID && at[1] == 0x42 + test.sending);
		uint32_t counter = queue << 28 | test.next[queue]++;
		ENSURE((uint32_t)(read16(at + 2) << 16 | read16(at + 4)) == counter);
		uint8_t *copy = keep(length);
		memcpy(copy, at, length);
		test.datagrams[test.count++] = (struct datagram){
			copy, clear + (at - memory) + 6, length, with->number, (unsigned)test.sending,
			counter,
		};
		at += length;
	}
	total.sealed += done;
	free(memory);
}

static void take_new_generation(struct input *input)
{
	unsigned what = take8(input), phase = what & 1;
	struct generation generation = {
		.number = ++test.generations,
		.born = test.now,
		.limit = what & 4 ? 2 + take8(input) + (test.queues > 1 ? UNUSED : 0) : 1u << 28,
		.there = true,
	};

	generation.expires = generation.born + LIFETIME_NS;
	if (!(what & 8)) {
		test.receives[phase] = generation;
		memset(test.opened_count[phase], 0, sizeof(test.opened_count[phase]));
		install(1, phase, &generation);
	}
	if (what & 16)
		return;
	test.sends[phase] = generation;
	install(0, phase, &generation);
	if (test.sending == (int)phase) /* it was the old one that was to be sent with */
		test.sending = -1;
}

static void take_send_with(struct input *input)
{
	unsigned phase = take8(input) & 1;
	struct key_slot *slot = &page(0)->slots[phase];

	if (!test.sends[phase].there)
		return;
	page(0)->sending = slot->serial;
	test.sending = (int)phase;
	for (unsigned queue = 0; queue < test.queues; queue++) {
		uint64_t next = page_sequence(page(0), phase, queue)->next;
		test.next[queue] = next >> 32 == slot->serial ? (uint32_t)next : 1;
	}
}

/* As if many frames had been sent meanwhile. */
static void take_jump(struct input *input)
{
	uint32_t by = take16(input);
	unsigned queue = by % test.queues;

	if (test.sending < 0)
		return;
	struct key_slot *slot = &page(0)->slots[test.sending];
	struct sequence *own = page_sequence(page(0), (unsigned)test.sending, queue);
	if (own->next >> 32 != slot->serial)
		return;
	if (by & 0x8000)
		by = (by & 0x7fff) << 14;
	uint64_t next = (uint64_t)test.next[queue] + by;
	if (next >= slot->limit)
		return;
	test.next[queue] = (uint32_t)next;
	own->next = slot->serial << 32 | next;
}

static void take_delivery(struct input *input, unsigned what)
{
	if (test.count == 0)
		return;
	const struct datagram *datagram = &test.datagrams[take16(input) % test.count];
	size_t length = datagram->length, more = 0;
	if (what & 8)
		more = take8(input) % 32;
	uint8_t *copy = keep(length + more);
	memcpy(copy, datagram->sealed, length);
	memset(copy + length, 0x55, more);
	if (what & 16)
		copy[take16(input) % length] ^= (uint8_t)take8(input);
	if (what & 32)
		copy[take8(input) % 6] ^= (uint8_t)take8(input);
	length += more;
	if (what & 64)
		length = take16(input) % (length + 1);
	deliver(copy, length);
}

static void take_bytes(struct input *input)
{
	uint8_t data[64];
	size_t length = take8(input) % sizeof(data);

	for (size_t i = 0; i < length; i++)
		data[i] = (uint8_t)take8(input);
	deliver(data, length);
}

/* The worker dies, and another one goes on with the page. */
static void take_succession(struct input *input)
{
	bool receiver = take8(input) & 1;

	if (receiver) {
		opener_close(&test.opener);
		ENSURE(key_page_take_over(page(1), 0));
		return;
	}
	for (unsigned queue = 0; queue < test.queues; queue++) {
		sealer_close(&test.sealers[queue]);
		test.sealers[queue].last = 0;
		ENSURE(key_page_take_over(page(0), queue));
		if (test.sending < 0)
			continue;
		uint64_t serial = page(0)->slots[test.sending].serial;
		uint64_t limit = test.sends[test.sending].limit;
		if (page_sequence(page(0), (unsigned)test.sending, queue)->next >> 32 == serial) {
			uint64_t next = (uint64_t)test.next[queue] + (1 << 20);
			test.next[queue] = (uint32_t)(next < limit ? next : limit);
		}
	}
}

static void take_record(struct input *input)
{
	unsigned what = take8(input);

	switch (what & 7) {
	case 0:
		take_new_generation(input);
		break;
	case 1:
		take_send_with(input);
		break;
	case 2:
		take_seal(input);
		break;
	case 3:
		if (what & 8)
			take_jump(input);
		else
			take_succession(input);
		break;
	case 4:
		if (what & 8) {
			test.now += take16(input) % LIFETIME_NS;
		} else {
			unsigned phase = take8(input) & 1;
			page(1)->slots[phase].serial = 0;
			test.receives[phase].there = false;
		}
		break;
	case 5:
		take_bytes(input);
		break;
	case 6:
		take_delivery(input, 0);
		break;
	case 7:
		take_delivery(input, what);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct list *const lists[] = {&test.kept};
	struct input input = {data, size};

	ENSURE(aead_unavailable() == NULL);
	forget(lists, 1);
	memset(&test, 0, sizeof(test));
	test.now = 1000;
	test.sending = -1;
	page(0)->magic = page(1)->magic = KEY_PAGE_MAGIC;
	test.queues = take8(&input) & 1 ? QUEUES_MAX : 1;
	for (unsigned queue = 0; queue < test.queues; queue++) {
		ENSURE(key_page_take_over(page(0), queue));
		test.sealers[queue] = (struct sealer){.io = &fuzz_io,
						      .page = page(0),
						      .circuit_id = ID,
						      .acknowledges = queue == 0,
						      .sequence = queue,
						      .room = SEQUENCES};
	}
	ENSURE(key_page_take_over(page(1), 0));
	test.opener = (struct opener){.io = &fuzz_io,
				      .page = page(1),
				      .acknowledges = true,
				      .shares = test.queues > 1,
				      .sequences = test.queues};
	for (int records = 0; input.left && records < RECORDS; records++)
		take_record(&input);
	for (unsigned queue = 0; queue < test.queues; queue++)
		sealer_close(&test.sealers[queue]);
	opener_close(&test.opener);
	return 0;
}
