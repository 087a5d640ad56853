/* Kills workers of two queues at random while they reserve counters and seal, or open and mark, on one key page,
 * and looks at what got out: no counter twice with one key, and no frame accepted twice, by whichever thread.
 *
 * Usage: key_page seal|open shared|private PAGE_FD KILLS
 *
 * PAGE_FD is the descriptor of a key page whose phase 0 has a key to send and receive with. With "private"
 * the worker's changes to it die with it, as a control: then counters do come twice. Successors leave no
 * counters out here (key_page_take_over), which would hide mistakes. Prints the figures; status 1 where
 * something came twice. */
#define _GNU_SOURCE
#include "../../vela/dataplane/native/cipher.h"

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	ID = 7,
	BATCH = 64,
	LENGTH = 60,
	FRAMES = 1 << 17,
	COUNTERS = 1 << 28,
	LIFE_MAX_US = 700,
	EARLY = 4,	/* of so many lives one may end before it has begun */
	BEGIN_MAX_S = 5,
	QUEUES = 2,
	THREADS = 2 * QUEUES,
};

struct record {
	unsigned thread;
	unsigned count;
	uint32_t counters[BATCH];
};

static struct key_page *page;
static uint8_t (*frames)[TEXT + LENGTH + AEAD_TAG]; /* by their counters */
static uint8_t *seen[QUEUES];			    /* by sequence: a bit for each number */
static int out;
static volatile bool *through; /* all frames have come: workers have nothing left to report */

static void report(const struct record *record)
{
	size_t size = offsetof(struct record, counters) + record->count * sizeof(uint32_t);

	if (send(out, record, size, MSG_NOSIGNAL) < 0)
		_exit(2);
}

/* One of the worker's threads: each queue has two. What was sealed counts as used as soon as it is out. */
static void *seal(void *number)
{
	struct sealer sealer = {.io = &kernel_io,
				.page = page,
				.circuit_id = ID,
				.sequence = (unsigned)(uintptr_t)number % QUEUES,
				.room = SEQUENCES};
	size_t lengths[BATCH];
	struct sealed sealed[BATCH];
	static _Thread_local uint8_t memory[BATCH * (TEXT + LENGTH + AEAD_TAG)];
	unsigned random = (unsigned)getpid() * 7919 + (unsigned)(uintptr_t)number;

	for (int i = 0; i < BATCH; i++)
		lengths[i] = LENGTH;
	for (;;) {
		random = random * 1103515245 + 12345;
		size_t count = 1 + (random >> 16) % BATCH;
		struct record record = {.thread = (unsigned)(uintptr_t)number};
		if (sealer_seal(&sealer, memory, lengths, &count, sealed) != SEALED)
			_exit(3);
		for (; record.count < count; record.count++)
			record.counters[record.count] =
				get32(sealed[record.count].datagram + CIRCUIT_ID + PHASE);
		report(&record);
	}
	return NULL;
}

/* Frames come in disorder, repeated, and now and then with a jump: the same ones to all threads. */
static void *open_all(void *number)
{
	struct opener opener = {.io = &kernel_io,
				.page = page,
				.acknowledges = number == NULL,
				.shares = true,
				.sequences = QUEUES};
	unsigned random = (unsigned)getpid() * 7919;
	uint32_t around = (uint32_t)page->slots[0].first.top + 1;

	for (;;) {
		struct record record = {.thread = (unsigned)(uintptr_t)number};
		opener_look(&opener);
		while (record.count < BATCH) {
			uint8_t copy[sizeof(*frames)], *datagram = copy;
			size_t length = sizeof(copy);
			random = random * 1103515245 + 12345;
			unsigned draw = random >> 12;
			uint32_t counter = around + draw % 40;
			counter = counter > 30 ? counter - 30 : 1;
			if (draw % 97 == 0)
				around += draw % 500;
			around += draw % 5 == 0;
			if (counter >= FRAMES || around >= FRAMES) {
				*through = true;
				for (;;)
					pause();
			}
			memcpy(copy, frames[counter], sizeof(copy));
			if (opener_open(&opener, &datagram, &length) == OPENED)
				record.counters[record.count++] = counter;
		}
		report(&record);
	}
	return NULL;
}

static pid_t start(bool seals)
{
	pid_t child = fork();

	if (child < 0)
		err(4, "fork");
	if (child > 0)
		return child;
	void *(*run)(void *) = seals ? seal : open_all;
	for (uintptr_t number = 1; number < THREADS; number++) {
		pthread_t other;
		if (pthread_create(&other, NULL, run, (void *)number))
			_exit(5);
	}
	run((void *)0);
	_exit(0);
}

static struct {
	unsigned long long kills, counters, twice, backwards;
} total;

static void drain(int in, uint32_t last[THREADS])
{
	struct record record;

	while (recv(in, &record, sizeof(record), MSG_DONTWAIT) > 0) {
		for (unsigned i = 0; i < record.count; i++) {
			uint32_t counter = record.counters[i] % COUNTERS;
			uint8_t *bits = &seen[record.counters[i] / COUNTERS][counter / 8];
			uint8_t bit = (uint8_t)(1 << counter % 8);
			total.counters++;
			total.twice += (*bits & bit) != 0;
			*bits |= bit;
			total.backwards += counter <= last[record.thread];
			last[record.thread] = counter;
		}
	}
}

/* Drain for so long, or until there are other counters than before. */
static void drain_until(int in, uint32_t last[THREADS], long us, const unsigned long long *before)
{
	struct timespec now, end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += us * 1000L;
	do {
		drain(in, last);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((before == NULL || (*before == total.counters && !*through)) &&
		 (now.tv_sec - end.tv_sec) * 1000000000L + now.tv_nsec < end.tv_nsec);
}

/* All frames that come, sealed with the same key. */
static void make_frames(void)
{
	struct key_slot *slot = &page->slots[0];
	struct aead *aead = aead_open((enum suite)slot->suite, slot->rx_key, slot->rx_salt, AEAD_SEALS);

	frames = calloc(FRAMES, sizeof(*frames));
	if (aead == NULL || frames == NULL)
		errx(4, "no memory");
	for (uint32_t counter = 1; counter < FRAMES; counter++) {
		uint8_t *frame = frames[counter];
		frame[0] = ID;
		frame[1] = ENCRYPTED_BYTE;
		put32(frame + 2, counter);
		if (!aead_seal(aead, counter, frame + TEXT, LENGTH))
			errx(4, "cannot seal");
	}
	aead_close(aead);
}

int main(int count, char **arguments)
{
	int pair[2];
	uint32_t last[THREADS] = {0};

	if (count != 5)
		errx(4, "usage: key_page seal|open shared|private PAGE_FD KILLS");
	bool seals = strcmp(arguments[1], "seal") == 0;
	bool shared = strcmp(arguments[2], "shared") == 0;
	size_t size = sizeof(*page);
	page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(arguments[3]), 0);
	if (page == MAP_FAILED)
		err(4, "the page");
	if (!shared) {
		struct key_page *copy = mmap(NULL, size, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memcpy(copy, page, sizeof(*page));
		page = copy;
	}
	through = mmap(NULL, sizeof(*through), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (through == MAP_FAILED)
		err(4, "mmap");
	page->sequences = QUEUES;
	for (int queue = 0; queue < QUEUES; queue++)
		seen[queue] = calloc(COUNTERS / 8, 1);
	if (!seals)
		make_frames();
	aead_unavailable(); /* ciphers are fetched before the fork, as velad does it */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
		err(4, "socketpair");
	out = pair[1];
	srandom((unsigned)getpid());
	for (int kills = atoi(arguments[4]); kills > 0; kills--) {
		pid_t child = start(seals);
		/* A life is counted from its first report: on a busy machine it takes long to begin. */
		unsigned long long before = total.counters;
		if (kills % EARLY)
			drain_until(pair[0], last, BEGIN_MAX_S * 1000000L, &before);
		drain_until(pair[0], last, random() % LIFE_MAX_US, NULL);
		kill(child, SIGKILL);
		int status;
		if (waitpid(child, &status, 0) < 0 || !WIFSIGNALED(status))
			errx(4, "the worker ended by itself: %d", WEXITSTATUS(status));
		total.kills++;
		drain(pair[0], last);
		/* A thread of the next life is another one; counters of all lives rise nevertheless. */
	}
	printf("kills %llu counters %llu twice %llu backwards %llu\n", total.kills, total.counters,
	       total.twice, total.backwards);
	return total.twice ? 1 : 0;
}
