/* What the data path ought to do, the slow and plain way. Shares no code with vela/dataplane/native: bytes are
 * numbers in network order here, and checksums a loop over pairs of them. */
#ifndef VELA_FUZZ_MODEL_H
#define VELA_FUZZ_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Say what is wrong, and abort. */
void violated(const char *what, int line) __attribute__((noreturn));
#define ENSURE(condition) ((condition) ? (void)0 : violated(#condition, __LINE__))

/* Byte strings that live until the next input. */
struct item {
	uint8_t *data;
	size_t length;
	bool left;   /* its checksum was left: its two forms of zero are one */
	uint8_t tos; /* of the outer header, as it was asked for */
};

struct list {
	struct item *items;
	size_t count, room;
};

/* Forget all lists and byte strings. */
void forget(struct list *const *lists, size_t count);
uint8_t *keep(size_t length);
struct item *list_add(struct list *list, const uint8_t *data, size_t length);

unsigned read16(const uint8_t *at);
void write16(uint8_t *at, unsigned value);

/* RFC 1071; before is another sum. */
unsigned sum_of(const uint8_t *data, size_t length, unsigned before);

/* Where the IP header of a frame is, 0 where it has none. */
size_t ip_offset(const uint8_t *frame, size_t length);
/* Whether these bytes are an IP packet of this version, and maybe something behind it. */
bool is_packet(const uint8_t *packet, size_t length, unsigned version);

/* A whole TCP or UDP packet without anything behind it. */
struct anatomy {
	bool tcp, ipv4;
	size_t transport, field, payload; /* from the IP header */
	unsigned pseudo;
};

bool dissect(const uint8_t *packet, size_t length, struct anatomy *found);

/* The virtio header, decoded. */
struct todo {
	unsigned flags, kind, header, size, start, offset;
};

struct todo todo_of(const uint8_t *virtio);

/* Complete a checksum, as skb_checksum_help of the kernel. */
bool complete(uint8_t *frame, size_t length, size_t start, size_t offset);

/* Complete the checksum of a packet that holds the sum of the pseudo-header instead; false where it
 * does not. */
bool complete_left(uint8_t *packet, size_t length);

/* Cut a GSO frame as the kernel does, into frames behind list. head_room: how much there may be
 * before a payload. False where the virtio header does not fit the frame. */
bool cut(const uint8_t *frame, size_t length, const struct todo *todo, size_t head_room,
	 struct list *list);

/* Compare what came with what was expected, in order. */
void ensure_same(const struct list *got, const struct list *expected);

#endif
