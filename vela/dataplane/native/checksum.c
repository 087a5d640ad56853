/* The Internet checksum's one expensive loop. */
#include "checksum.h"

#include <string.h>

/* Each machine's widest vector instructions, chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VELA_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define VELA_CLONES
#endif

VELA_CLONES uint64_t vela_sum(const uint8_t *data, size_t length)
{
	uint64_t sum = 0;
	size_t words = length / sizeof(uint32_t);

	/* 32-bit words into a 64-bit sum: no carry is lost below 16 GiB. */
	for (size_t i = 0; i < words; i++) {
		uint32_t word;
		memcpy(&word, data + i * sizeof(word), sizeof(word));
		sum += word;
	}
	size_t rest = length % sizeof(uint32_t);
	if (rest) {
		uint32_t word = 0;
		memcpy(&word, data + length - rest, rest);
		sum += word;
	}
	return sum;
}
