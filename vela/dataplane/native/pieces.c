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

struct cut cut_for_bundle(size_t length, size_t room)
{
	if (room == 0 || length <= room || length > UINT16_MAX || divide_up(length, room) > PIECES_MAX)
		return (struct cut){0, 0};
	size_t count = divide_up(length, room);
	size_t last = length - (count - 1) * room;
	if (2 * (BUNDLED_HEADER + last) > room)
		return (struct cut){0, 0};
	return (struct cut){count, room};
}

void write_bundled_header(uint8_t *at, const struct cut *cut, size_t length, uint32_t number)
{
	uint8_t head[PIECE_HEADER];

	write_piece_header(head, 0, cut, cut->count - 1, length, number);
	memcpy(at, head + PIECE_INDEX_AT, BUNDLED_SIZE_AT);
	at[0] |= PIECE_BUNDLED;
	put16(at + BUNDLED_SIZE_AT, (uint16_t)cut->size);
}

void write_piece_header(uint8_t *at, uint8_t circuit_id, const struct cut *cut, size_t index, size_t length,
			uint32_t number)
{
	at[0] = circuit_id;
	at[CIRCUIT_ID] = PIECE_BYTE;
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

/* at: the index in a header. */
static void read_header(const uint8_t *at, struct piece *piece)
{
	piece->index = at[0] & PIECE_INDEX;
	piece->last = at[0] & PIECE_LAST;
	piece->whole = get16(at + PIECE_LENGTH_AT - PIECE_INDEX_AT);
	piece->number = get32(at + PIECE_NUMBER_AT - PIECE_INDEX_AT);
}

/* Tell whether a frame can have this piece. */
static bool is_possible(const struct piece *piece)
{
	size_t count = divide_up(piece->whole, piece->size);

	/* The size of one says where each lies: they cannot overlap. */
	return count >= 2 && count <= PIECES_MAX && piece->index < count &&
	       piece->last == (piece->index + 1 == count);
}

enum joining find_piece(const uint8_t *datagram, size_t length, struct piece *piece)
{
	if (length <= PIECE_HEADER)
		return PIECE_SHORT;
	read_header(datagram + PIECE_INDEX_AT, piece);
	piece->circuit_id = datagram[0];
	piece->size = length - PIECE_HEADER;
	if (!is_possible(piece))
		return PIECE_MALFORMED;
	piece->content = datagram + PIECE_HEADER;
	piece->length = piece->last ? piece->whole - piece->index * piece->size : piece->size;
	return PIECE_TAKEN;
}

bool is_bundle(const uint8_t *datagram, size_t length)
{
	return length > PIECE_INDEX_AT && datagram[PIECE_INDEX_AT] & PIECE_BUNDLED;
}

enum joining find_bundled(const uint8_t *datagram, size_t length, size_t *at, struct piece *piece)
{
	if (length - *at <= BUNDLED_HEADER)
		return PIECE_SHORT;
	const uint8_t *header = datagram + *at;
	read_header(header, piece);
	piece->circuit_id = datagram[0];
	piece->size = get16(header + BUNDLED_SIZE_AT);
	if (piece->size == 0 || !(header[0] & PIECE_BUNDLED) || !is_possible(piece) || !piece->last)
		return PIECE_MALFORMED;
	piece->content = header + BUNDLED_HEADER;
	piece->length = piece->whole - piece->index * piece->size;
	*at += BUNDLED_HEADER;
	if (piece->length > length - *at)
		return PIECE_MALFORMED;
	*at += piece->length;
	return PIECE_TAKEN;
}

bool joiner_overwrites(const struct joiner *self, const struct piece *piece)
{
	const struct join_slot *slot = &self->slots[piece->number % JOIN_SLOTS];
	return slot->missing == 0 && slot->length && slot->epoch == self->epoch;
}

void joiner_keep(struct joiner *self, const struct piece *piece)
{
	self->slots[piece->number % JOIN_SLOTS].epoch = self->epoch;
}

uint8_t joiner_ecn(const struct joiner *self, const struct piece *piece)
{
	return self->slots[piece->number % JOIN_SLOTS].ecn;
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

enum joining joiner_take(struct joiner *self, const struct piece *piece, uint8_t ecn, uint64_t now_ms,
			 uint8_t **joined, size_t *joined_length, uint64_t *incomplete)
{
	if (CIRCUIT_ID + piece->whole > self->room)
		return PIECE_OVERSIZED;

	size_t count = divide_up(piece->whole, piece->size);
	struct join_slot *slot = &self->slots[piece->number % JOIN_SLOTS];
	uint8_t *memory = self->memory + piece->number % JOIN_SLOTS * self->room;
	if (slot->length == 0 || slot->number != piece->number || slot->length != piece->whole ||
	    slot->size != piece->size || is_old(slot, now_ms)) {
		sweep(self, now_ms, incomplete);
		give_up(slot, incomplete);
		*slot = (struct join_slot){
			.missing = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1,
			.since_ms = now_ms,
			.number = piece->number,
			.length = (uint16_t)piece->whole,
			.size = (uint16_t)piece->size,
			.ecn = ecn,
		};
	}
	uint64_t bit = UINT64_C(1) << piece->index;
	if (!(slot->missing & bit))
		return PIECE_DUPLICATE;
	/* RFC 3168, section 5.3. */
	if (ecn == ECN_CE)
		slot->ecn = ecn;
	memcpy(memory + CIRCUIT_ID + piece->index * piece->size, piece->content, piece->length);
	slot->missing &= ~bit;
	if (slot->missing)
		return PIECE_TAKEN;
	memory[0] = piece->circuit_id;
	*joined = memory;
	*joined_length = CIRCUIT_ID + piece->whole;
	return PIECE_COMPLETES;
}
