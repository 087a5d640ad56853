/* Lets threads of several queues open the same frames at the same instant, frame after frame, and looks at how
 * often each was accepted: once.
 *
 * Usage: windows shared|alone FRAMES
 *
 * With "alone" each thread opens as if there were no other, as a control: then some are accepted twice. Prints
 * the figures; status 1 where a frame was accepted twice, or not at all. */
#define _GNU_SOURCE
#include "../../vela/dataplane/native/cipher.h"

#include <err.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ID = 7, LENGTH = 60, THREADS = 2, SEQUENCE = 3, SPINS = 1000 };

static struct key_page *page;
static uint8_t (*frames)[TEXT + LENGTH + AEAD_TAG];
static atomic_int *accepted;
static atomic_int arrivals; /* of all threads, at all frames */
static int count;
static bool shares;

static void await(int all)
{
	for (int spins = 1; atomic_load(&arrivals) < all; spins++)
		if (spins % SPINS == 0)
			sched_yield(); /* the other one may be waiting for this CPU */
}

/* Run on a CPU of its own: threads that take turns on one never meet. */
static void pin(unsigned number)
{
	cpu_set_t allowed, own;

	CPU_ZERO(&own);
	sched_getaffinity(0, sizeof(allowed), &allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		if (number-- == 0)
			CPU_SET(cpu, &own);
	}
	pthread_setaffinity_np(pthread_self(), sizeof(own), &own);
}

static void *open_all(void *number)
{
	struct opener opener = {.io = &kernel_io,
				.page = page,
				.acknowledges = number == NULL,
				.shares = shares,
				.sequences = SEQUENCES};

	pin((unsigned)(uintptr_t)number);
	opener_look(&opener);
	for (int i = 0; i < count; i++) {
		uint8_t copy[sizeof(*frames)], *datagram = copy;
		size_t length = sizeof(copy);
		memcpy(copy, frames[i], sizeof(copy));
		atomic_fetch_add(&arrivals, 1);
		await((i + 1) * THREADS);
		if (opener_open(&opener, &datagram, &length) == OPENED)
			atomic_fetch_add(&accepted[i], 1);
	}
	opener_close(&opener);
	return NULL;
}

int main(int argc, char **arguments)
{
	int twice = 0, never = 0;
	pthread_t other;

	if (argc != 3)
		errx(4, "usage: windows shared|alone FRAMES");
	shares = strcmp(arguments[1], "shared") == 0;
	count = atoi(arguments[2]);
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	frames = calloc((size_t)count, sizeof(*frames));
	accepted = calloc((size_t)count, sizeof(*accepted));
	if (page == MAP_FAILED || frames == NULL || accepted == NULL)
		errx(4, "no memory");
	struct key_slot *slot = &page->slots[0];
	slot->suite = 1;
	slot->expires_ns = UINT64_MAX;
	slot->limit = 1 << NUMBER_BITS;
	slot->serial = 1;
	struct aead *aead = aead_open((enum suite)slot->suite, slot->rx_key, slot->rx_salt, AEAD_SEALS);
	for (int i = 0; i < count; i++) {
		uint32_t counter = (uint32_t)SEQUENCE << NUMBER_BITS | (uint32_t)(i + 1);
		frames[i][0] = ID;
		frames[i][CIRCUIT_ID] = ENCRYPTED_BYTE;
		put32(frames[i] + CIRCUIT_ID + PHASE, counter);
		if (aead == NULL || !aead_seal(aead, counter, frames[i] + TEXT, LENGTH))
			errx(4, "cannot seal");
	}
	aead_close(aead);
	if (pthread_create(&other, NULL, open_all, (void *)1))
		errx(4, "no thread");
	open_all(NULL);
	pthread_join(other, NULL);
	for (int i = 0; i < count; i++) {
		twice += accepted[i] > 1;
		never += accepted[i] == 0;
	}
	printf("frames %d twice %d never %d\n", count, twice, never);
	return twice || never;
}
