/* Fuzzes the MSS clamp: whatever a frame is, no more than MSS values above the limit and the checksum change,
 * and the sum over the TCP header, which the checksum completes, stays what it was.
 *
 * Input: a byte of settings, two of the limit, then the frame, which lies at the end of its memory. */
#include "../../vela/dataplane/native/mss.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../vela/dataplane/native/packet.h"
#include "model.h"
#include "shapes.h"

static struct {
	uint64_t syns, lowered;
} total;

static void sum_up(void)
{
	fprintf(stderr, "reached: SYNs %llu, lowered %llu\n", (unsigned long long)total.syns,
		(unsigned long long)total.lowered);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	atexit(sum_up);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	unsigned what = take8(&input);
	unsigned value = take16(&input) | 1; /* 0: no limit */
	struct mss_clamp clamp = {.datagram_limit = what & 1 ? value : 0,
				  .mss = (uint16_t)(what & 2 || !(what & 1) ? value : 0)};
	size_t length = input.left, changes = 0;
	struct syn syn;

	if (length < ETHERNET_HEADER)
		return 0;
	uint8_t *frame = malloc(length), *before = malloc(length);
	memcpy(frame, input.at, length);
	/* Most inputs are to be SYNs of some kind. */
	if (what & 4 && length >= 54) {
		write16(frame + 12, what & 8 ? 0x86dd : 0x0800);
		frame[14] = what & 8 ? 0x60 : 0x45;
		write16(frame + (what & 8 ? 18 : 16), (unsigned)(length - (what & 8 ? 54 : 14)));
		if (what & 16)
			frame[what & 8 ? 20 : 23] = 6;
	}
	memcpy(before, frame, length);
	size_t network = network_offset(frame, length);
	if (network && find_syn(frame + network, length - network, &syn)) {
		size_t at = (size_t)(syn.header - frame), own = (size_t)(syn.header[12] / 16) * 4;
		uint16_t limit = mss_limit(&clamp, &syn, 1 + network);
		total.syns++;
		ENSURE(at >= network + 20 && own >= 20 && at + own <= length && limit);
		bool partial = what & 32;
		bool lowered = lower_mss(&syn, limit, partial);
		ENSURE(memcmp(frame, before, at + 16) == 0);
		ENSURE(memcmp(frame + at + 18, before + at + 18, 2) == 0);
		ENSURE(memcmp(frame + at + own, before + at + own, length - at - own) == 0);
		for (size_t i = at + 20; i < at + own; i++)
			changes += frame[i] != before[i];
		ENSURE(lowered == (changes > 0));
		if (partial || !lowered) {
			ENSURE(memcmp(frame + at + 16, before + at + 16, 2) == 0);
		} else {
			/* 0 and 0xffff are one number here. */
			ENSURE(sum_of(frame + at, own, 0) % 0xffff == sum_of(before + at, own, 0) % 0xffff);
			ENSURE(read16(frame + at + 16) != 0);
		}
		ENSURE(!lower_mss(&syn, limit, partial));
		total.lowered += lowered;
	} else {
		ENSURE(memcmp(frame, before, length) == 0);
	}
	free(frame);
	free(before);
	return 0;
}
