/* What the data path ought to do. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t arena[64 << 20];
static size_t arena_used;

void violated(const char *what, int line)
{
	fprintf(stderr, "violated, line %d: %s\n", line, what);
	abort();
}

void forget(struct list *const *lists, size_t count)
{
	arena_used = 0;
	for (size_t i = 0; i < count; i++)
		lists[i]->count = 0;
}

uint8_t *keep(size_t length)
{
	uint8_t *at = arena + arena_used;

	ENSURE(length <= sizeof(arena) - arena_used);
	arena_used += length;
	return at;
}

struct item *list_add(struct list *list, const uint8_t *data, size_t length)
{
	if (list->count == list->room) {
		list->room = list->room ? 2 * list->room : 256;
		list->items = realloc(list->items, list->room * sizeof(*list->items));
	}
	struct item *item = &list->items[list->count++];
	*item = (struct item){.data = keep(length), .length = length};
	memcpy(item->data, data, length);
	return item;
}

unsigned read16(const uint8_t *at)
{
	return at[0] * 256u + at[1];
}

void write16(uint8_t *at, unsigned value)
{
	at[0] = (uint8_t)(value / 256);
	at[1] = (uint8_t)(value % 256);
}

unsigned sum_of(const uint8_t *data, size_t length, unsigned before)
{
	uint64_t sum = before;

	for (size_t i = 0; i + 1 < length; i += 2)
		sum += read16(data + i);
	if (length % 2)
		sum += data[length - 1] * 256u;
	while (sum >= 0x10000)
		sum -= sum / 0x10000 * 0xffff;
	return (unsigned)sum;
}

static unsigned add(unsigned a, unsigned b)
{
	return a + b >= 0x10000 ? a + b - 0xffff : a + b;
}

size_t ip_offset(const uint8_t *frame, size_t length)
{
	size_t at = 12;

	while (at + 2 <= length) {
		unsigned type = read16(frame + at);
		if (type == 0x0800 || type == 0x86dd)
			return at + 2;
		if (type != 0x8100 && type != 0x88a8)
			return 0;
		at += 4;
	}
	return 0;
}

bool is_packet(const uint8_t *packet, size_t length, unsigned version)
{
	if (length < (version == 4 ? 20 : 40) || packet[0] / 16 != version)
		return false;
	if (version == 6)
		return 40 + read16(packet + 4) <= length;
	unsigned header = packet[0] % 16 * 4, total = read16(packet + 2);
	return header >= 20 && total >= header && total <= length;
}

bool dissect(const uint8_t *packet, size_t length, struct anatomy *found)
{
	unsigned protocol;

	if (is_packet(packet, length, 4)) {
		bool fragment = packet[6] & 0x20 || read16(packet + 6) % 0x2000;
		if (fragment || read16(packet + 2) != length)
			return false;
		found->ipv4 = true;
		found->transport = packet[0] % 16 * 4;
		protocol = packet[9];
		found->pseudo = sum_of(packet + 12, 8, 0);
	} else if (is_packet(packet, length, 6)) {
		if (40 + read16(packet + 4) != length)
			return false;
		found->ipv4 = false;
		found->transport = 40;
		protocol = packet[6];
		found->pseudo = sum_of(packet + 8, 32, 0);
	} else {
		return false;
	}
	size_t rest = length - found->transport;
	const uint8_t *header = packet + found->transport;
	found->pseudo = add(add(found->pseudo, protocol), (unsigned)rest);
	found->tcp = protocol == 6;
	if (protocol == 6) {
		if (rest < 20 || header[12] / 16 < 5 || header[12] / 16 * 4u > rest)
			return false;
		found->field = found->transport + 16;
		found->payload = found->transport + header[12] / 16 * 4u;
		return true;
	}
	if (protocol != 17 || rest < 8 || read16(header + 4) != rest)
		return false;
	found->field = found->transport + 6;
	found->payload = found->transport + 8;
	return true;
}

struct todo todo_of(const uint8_t *virtio)
{
	uint16_t words[4]; /* in the machine's order */

	memcpy(words, virtio + 2, sizeof(words));
	return (struct todo){virtio[0], virtio[1], words[0], words[1], words[2], words[3]};
}

static void put_never_zero(uint8_t *field, unsigned sum)
{
	write16(field, sum == 0xffff ? 0xffff : 0xffff - sum);
}

bool complete(uint8_t *frame, size_t length, size_t start, size_t offset)
{
	if (start + offset + 2 > length)
		return false;
	put_never_zero(frame + start + offset, sum_of(frame + start, length - start, 0));
	return true;
}

bool complete_left(uint8_t *packet, size_t length)
{
	struct anatomy found;

	if (!dissect(packet, length, &found) || read16(packet + found.field) != found.pseudo)
		return false;
	return complete(packet, length, found.transport, found.field - found.transport);
}

bool cut(const uint8_t *frame, size_t length, const struct todo *todo, size_t head_room,
	 struct list *list)
{
	unsigned kind = todo->kind & 0x7f;
	bool tcp = kind == 1 || kind == 4;
	size_t ip = ip_offset(frame, length);
	size_t transport = todo->start;

	if (!tcp && kind != 5)
		return false;
	if (!(todo->flags & 1) || todo->size == 0 || ip == 0 || ip >= length)
		return false;
	bool ipv4 = frame[ip] / 16 == 4;
	if ((!ipv4 && frame[ip] / 16 != 6) || kind == (ipv4 ? 4 : 1))
		return false;
	if (transport < ip + (ipv4 ? 20 : 40) || transport + (tcp ? 20 : 8) > length)
		return false;
	if (ipv4 && ip + frame[ip] % 16 * 4 != transport)
		return false;
	size_t own = tcp ? frame[transport + 12] / 16 * 4u : 8;
	size_t head = transport + own;
	if ((tcp && own < 20) || head > length || head > head_room)
		return false;

	/* Behind extension headers it stands elsewhere. */
	unsigned protocol = ipv4 ? frame[ip + 9] : frame[ip + 6];
	if ((ipv4 || transport == ip + 40) && protocol != (tcp ? 6 : 17))
		return false;

	size_t field = transport + (tcp ? 16 : 6);
	unsigned whole = (length - transport) % 0x10000;
	/* What is left of the sum of the pseudo-header without the length. */
	unsigned pseudo = add(read16(frame + field), 0xffff - whole);
	unsigned number = 0;
	size_t at = head;
	do {
		bool last = length - at <= todo->size;
		size_t payload = last ? length - at : todo->size;
		struct item *item = list_add(list, frame, head);
		uint8_t *copy = item->data;
		/* Grows what was kept last. */
		memcpy(keep(payload), frame + at, payload);
		item->length += payload;

		unsigned octets = (unsigned)(own + payload);
		if (ipv4) {
			write16(copy + ip + 2, (unsigned)(transport - ip) + octets);
			write16(copy + ip + 4, (read16(frame + ip + 4) + number) % 0x10000);
			write16(copy + ip + 10, 0);
			write16(copy + ip + 10, 0xffff - sum_of(copy + ip, transport - ip, 0));
		} else {
			write16(copy + ip + 4, (unsigned)(transport - ip) - 40 + octets);
		}
		if (tcp) {
			uint32_t sequence = read16(frame + transport + 4) * 65536u +
					    read16(frame + transport + 6) +
					    (uint32_t)(at - head);
			write16(copy + transport + 4, sequence / 65536);
			write16(copy + transport + 6, sequence % 65536);
			if (!last)
				copy[transport + 13] &= 0xf6; /* FIN, PSH */
			if (number)
				copy[transport + 13] &= 0x7f; /* CWR */
		} else {
			write16(copy + transport + 4, octets);
		}
		write16(copy + field, 0);
		unsigned sum = sum_of(copy + transport, octets, add(pseudo, octets));
		if (tcp)
			write16(copy + field, 0xffff - sum);
		else
			put_never_zero(copy + field, sum);
		at += payload;
		number++;
	} while (at < length);
	return true;
}

static bool same(const struct item *got, const struct item *expected)
{
	if (got->length != expected->length)
		return false;
	if (memcmp(got->data, expected->data, got->length) == 0)
		return true;
	struct anatomy found;
	size_t ip = ip_offset(got->data, got->length);
	if (!got->left || !ip || !dissect(got->data + ip, got->length - ip, &found))
		return false;
	size_t field = ip + found.field;
	unsigned both = read16(got->data + field) + read16(expected->data + field);
	return both == 0xffff && read16(got->data + field) % 0xffff == 0 &&
	       memcmp(got->data, expected->data, field) == 0 &&
	       memcmp(got->data + field + 2, expected->data + field + 2, got->length - field - 2) == 0;
}

static void show(const char *what, const struct item *item)
{
	fprintf(stderr, "%s, %zu bytes: ", what, item->length);
	for (size_t i = 0; i < item->length && i < 160; i++)
		fprintf(stderr, "%02x", item->data[i]);
	fprintf(stderr, "\n");
}

void ensure_same(const struct list *got, const struct list *expected)
{
	for (size_t i = 0; i < got->count && i < expected->count; i++) {
		if (!same(&got->items[i], &expected->items[i])) {
			fprintf(stderr, "frame %zu\n", i);
			show("got", &got->items[i]);
			show("expected", &expected->items[i]);
			violated("the frames are those expected", __LINE__);
		}
	}
	if (got->count != expected->count)
		fprintf(stderr, "%zu instead of %zu\n", got->count, expected->count);
	ENSURE(got->count == expected->count);
}
