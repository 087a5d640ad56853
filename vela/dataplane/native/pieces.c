/* Frames that are larger than a datagram, in pieces and back. */
#include "pieces.h"

#include <stdlib.h>
#include <string.h>

#include "ecn.h"
#include "packet.h"

static size_t divide_up(size_t number, size_t by)
{
	return (number + by - 1) / by;
}

struct cut cut_evenly(size_t length, size_t room)
{
	if (room == 0 || length <= room || length > UINT16_MAX || divide_up(length, room) > PIECES_MAX)
		return (struct cut){0, 0};
	/* As few as possible, and then as small as possible. */
	size_t size = divide_up(length, divide_up(length, room));
	return (struct cut){divide_up(length, size), size};
}

void write_piece_header(uint8_t *at, uint8_t circuit_id, const struct cut *cut, size_t index, size_t length,
			uint32_t number)
{
	put_data_header(at + DATA_HEADER, circuit_id);
	at[DATA_HEADER] = PIECE_BYTE;
	at[PIECE_INDEX_AT] = (uint8_t)(index | (index + 1 == cut->count ? PIECE_LAST : 0));
	put16(at + PIECE_LENGTH_AT, (uint16_t)length);
	put32(at + PIECE_NUMBER_AT, number);
}

bool joiner_init(struct joiner *self, size_t frame_limit)
{
	*self = (struct joiner){.room = CIRCUIT_ID + ESCAPE + frame_limit};
	self->memory = malloc(JOIN_SLOTS * self->room);
	return self->memory != NULL;
}

void joiner_free(struct joiner *self)
{
	free(self->memory);
	self->memory = NULL;
}

static const struct join_slot *slot_of(const struct joiner *self, const uint8_t *datagram)
{
	return &self->slots[get32(datagram + PIECE_NUMBER_AT) % JOIN_SLOTS];
}

bool joiner_overwrites(const struct joiner *self, const uint8_t *datagram, size_t length)
{
	if (length <= PIECE_HEADER)
		return false;
	const struct join_slot *slot = slot_of(self, datagram);
	return slot->missing == 0 && slot->length && slot->epoch == self->epoch;
}

void joiner_keep(struct joiner *self, const uint8_t *datagram)
{
	self->slots[get32(datagram + PIECE_NUMBER_AT) % JOIN_SLOTS].epoch = self->epoch;
}

uint8_t joiner_ecn(const struct joiner *self, const uint8_t *datagram)
{
	return slot_of(self, datagram)->ecn;
}

static void give_up(struct join_slot *slot, uint64_t *incomplete)
{
	*incomplete += slot->missing != 0;
	*slot = (struct join_slot){0};
}

static bool is_old(const struct join_slot *slot, uint64_t now_ms)
{
	return now_ms - slot->since_ms >= JOIN_MS;
}

/* Give up all that are old, once in a while, so that they are counted though their slots are not needed. */
static void sweep(struct joiner *self, uint64_t now_ms, uint64_t *incomplete)
{
	if (now_ms - self->swept_ms < JOIN_MS)
		return;
	self->swept_ms = now_ms;
	for (size_t i = 0; i < JOIN_SLOTS; i++) {
		if (is_old(&self->slots[i], now_ms))
			give_up(&self->slots[i], incomplete);
	}
}

enum joining joiner_take(struct joiner *self, const uint8_t *datagram, size_t length, uint8_t ecn, uint64_t now_ms,
			 uint8_t **joined, size_t *joined_length, uint64_t *incomplete)
{
	if (length <= PIECE_HEADER)
		return PIECE_SHORT;
	size_t size = length - PIECE_HEADER;
	size_t whole = get16(datagram + PIECE_LENGTH_AT);
	size_t count = divide_up(whole, size);
	size_t index = datagram[PIECE_INDEX_AT] & PIECE_INDEX;
	bool last = datagram[PIECE_INDEX_AT] & PIECE_LAST;
	/* The size of one says where each lies: they cannot overlap. */
	if (count < 2 || count > PIECES_MAX || index >= count || last != (index + 1 == count))
		return PIECE_MALFORMED;
	if (CIRCUIT_ID + whole > self->room)
		return PIECE_OVERSIZED;

	uint32_t number = get32(datagram + PIECE_NUMBER_AT);
	struct join_slot *slot = &self->slots[number % JOIN_SLOTS];
	uint8_t *memory = self->memory + number % JOIN_SLOTS * self->room;
	if (slot->length == 0 || slot->number != number || slot->length != whole || slot->size != size ||
	    is_old(slot, now_ms)) {
		sweep(self, now_ms, incomplete);
		give_up(slot, incomplete);
		*slot = (struct join_slot){
			.missing = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1,
			.since_ms = now_ms,
			.number = number,
			.length = (uint16_t)whole,
			.size = (uint16_t)size,
			.ecn = ecn,
		};
	}
	uint64_t bit = UINT64_C(1) << index;
	if (!(slot->missing & bit))
		return PIECE_DUPLICATE;
	/* RFC 3168, section 5.3. */
	if (ecn == ECN_CE)
		slot->ecn = ecn;
	size_t start = index * size;
	memcpy(memory + CIRCUIT_ID + start, datagram + PIECE_HEADER, last ? whole - start : size);
	slot->missing &= ~bit;
	if (slot->missing)
		return PIECE_TAKEN;
	memory[0] = datagram[0];
	*joined = memory;
	*joined_length = CIRCUIT_ID + whole;
	return PIECE_COMPLETES;
}
