/* The Internet checksum (RFC 1071), as sums of 16-bit words in the machine's own byte order.
 *
 * One's complement sums do not depend on the byte order as long as what is added and what
 * is stored is taken from memory as it lies there (RFC 1071, section 2, B); so numbers
 * are added as network-order bytes, by htons(). */
#ifndef VELA_NATIVE_CHECKSUM_H
#define VELA_NATIVE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Return the sum of length bytes; an odd last one is padded with zero. Partial sums may be
 * added up, up to 2**16 of them. */
uint64_t vela_sum(const uint8_t *data, size_t length);

/* Bring a sum down to 16 bits; 0 only if all that was added is 0. */
static inline uint16_t vela_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

#endif
