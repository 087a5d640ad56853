/* Packets from few bytes of fuzzer input. */
#include "shapes.h"

#include <string.h>

#include "model.h"

unsigned take8(struct input *input)
{
	if (input->left == 0)
		return 0;
	input->left--;
	return *input->at++;
}

unsigned take16(struct input *input)
{
	unsigned high = take8(input);

	return high * 256 + take8(input);
}

struct shape shape_take(struct input *input)
{
	unsigned kind = take8(input), more = take8(input);
	struct shape shape = {
		.ipv6 = kind & 1,
		.tcp = !(kind & 2),
		.address = kind >> 2 & 3,
		.tags = more & 8 ? more & 3 : 0,
		.checksum = (enum checksum)(more >> 4 & 7),
		.flags = 0x10,
		.fragment = 0x4000,
		.hops = 64,
		.padding = more & 0x80 ? 3 : 0,
	};
	if (shape.tags > 2)
		shape.tags = 1;
	if (kind & 0x10)
		shape.extra_ip = 8 * (take8(input) % (shape.ipv6 ? 64 : 6));
	if (kind & 0x20)
		shape.extra_tcp = 4 * (take8(input) % 11);
	if (kind & 0x40)
		shape.flags = take8(input);
	if (kind & 0x80) {
		shape.identification = take16(input);
		shape.sequence = shape.identification * 0x10001u;
		shape.fragment = (take8(input) & 7) << 13;
		shape.hops = take8(input);
	}
	shape.fill = take8(input);
	shape.payload = take16(input);
	size_t headers = (shape.ipv6 ? 40 : 20) + shape.extra_ip + 20 + shape.extra_tcp;
	if (shape.payload > 65535 - headers - shape.padding)
		shape.payload = 65535 - headers - shape.padding;
	return shape;
}

static size_t write_link(const struct shape *shape, const uint8_t *destination,
			 const uint8_t *source, uint8_t *frame)
{
	static const uint8_t others[4][6] = {
		{0}, {0x45, 0, 0, 0, 0, 1}, {0x02, 0, 0, 0, 0, 9}, {0x65, 0, 0, 0, 0, 1}
	};
	size_t at = 12;

	memcpy(frame, shape->address ? others[shape->address] : destination, 6);
	memcpy(frame + 6, source, 6);
	for (unsigned i = 0; i < shape->tags; i++, at += 4) {
		write16(frame + at, shape->tags == 2 && i == 0 ? 0x88a8 : 0x8100);
		write16(frame + at + 2, 5);
	}
	write16(frame + at, shape->ipv6 ? 0x86dd : 0x0800);
	return at + 2;
}

static void write_payload(const struct shape *shape, uint8_t *at)
{
	if (shape->fill == 0 || shape->fill == 255) {
		memset(at, (int)shape->fill, shape->payload);
		return;
	}
	for (size_t i = 0; i < shape->payload; i++)
		at[i] = (uint8_t)(shape->fill + i / 251 + i);
}

size_t shape_write(const struct shape *shape, const uint8_t *destination, const uint8_t *source,
		   uint8_t *frame, size_t *transport)
{
	size_t ip = write_link(shape, destination, source, frame);
	uint8_t *packet = frame + ip;
	size_t headers = (shape->ipv6 ? 40 : 20) + shape->extra_ip;
	size_t own = shape->tcp ? 20 + shape->extra_tcp : 8;
	uint8_t *segment = packet + headers;
	unsigned protocol = shape->tcp ? 6 : 17;
	unsigned octets = (unsigned)(own + shape->payload);
	size_t length = ip + headers + octets;

	memset(packet, 0, headers + own);
	if (shape->ipv6) {
		packet[0] = 0x60;
		write16(packet + 4, shape->extra_ip + octets);
		packet[6] = (uint8_t)(shape->extra_ip ? 60 : protocol);
		packet[7] = (uint8_t)shape->hops;
		memcpy(packet + 8, "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\1", 16);
		memcpy(packet + 24, "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\2", 16);
		/* Destination options of eight bytes each: RFC 8200, section 4.6. */
		for (unsigned i = 0; i < shape->extra_ip; i += 8) {
			uint8_t *option = packet + 40 + i;
			option[0] = (uint8_t)(i + 8 < shape->extra_ip ? 60 : protocol);
			option[2] = 1;
			option[3] = 4;
		}
	} else {
		packet[0] = (uint8_t)(0x40 + headers / 4);
		write16(packet + 2, (unsigned)headers + octets);
		write16(packet + 4, shape->identification);
		write16(packet + 6, shape->fragment);
		packet[8] = (uint8_t)shape->hops;
		packet[9] = (uint8_t)protocol;
		memcpy(packet + 12, "\xc0\0\2\1\xc0\0\2\2", 8);
		memset(packet + 20, 1, shape->extra_ip);
		write16(packet + 10, 0xffff - sum_of(packet, headers, 0));
	}
	write16(segment, 40000);
	write16(segment + 2, 5201);
	if (shape->tcp) {
		write16(segment + 4, shape->sequence >> 16);
		write16(segment + 6, shape->sequence & 0xffff);
		segment[12] = (uint8_t)(own / 4 << 4);
		segment[13] = (uint8_t)shape->flags;
		write16(segment + 14, 500);
		memset(segment + 20, 1, shape->extra_tcp);
	} else {
		write16(segment + 4, octets);
	}
	write_payload(shape, segment + own);

	const uint8_t *addresses = packet + (shape->ipv6 ? 8 : 12);
	unsigned pseudo = sum_of(addresses, shape->ipv6 ? 32 : 8, 0);
	uint8_t rest[4];
	write16(rest, protocol);
	write16(rest + 2, octets);
	pseudo = sum_of(rest, 4, pseudo);
	unsigned right = 0xffff - sum_of(segment, octets, pseudo);
	if (right == 0 && !shape->tcp)
		right = 0xffff;
	unsigned value = right;
	switch (shape->checksum) {
	case CHECKSUM_LEFT:
		value = pseudo;
		break;
	case CHECKSUM_WRONG:
		value = (right + 1) % 0x10000;
		break;
	case CHECKSUM_NONE:
		value = 0;
		break;
	case CHECKSUM_ONES:
	case CHECKSUM_ZERO:
		/* The payload's last pair of bytes makes up for what the sum lacks. */
		if (shape->payload >= 2) {
			uint8_t *pair = segment + own + (shape->payload - 2) / 2 * 2;
			write16(pair, 0);
			write16(pair, 0xffff - sum_of(segment, octets, pseudo));
		}
		value = shape->checksum == CHECKSUM_ONES ? 0xffff : 0;
		break;
	default:
		break;
	}
	write16(segment + (shape->tcp ? 16 : 6), value);
	memset(frame + length, 0, shape->padding);
	*transport = ip + headers;
	return length + shape->padding;
}

void mend(uint8_t *frame, size_t length)
{
	size_t ip = ip_offset(frame, length);
	struct anatomy found;

	if (ip == 0 || !dissect(frame + ip, length - ip, &found))
		return;
	uint8_t *packet = frame + ip;
	if (found.ipv4) {
		write16(packet + 10, 0);
		write16(packet + 10, 0xffff - sum_of(packet, found.transport, 0));
	}
	write16(packet + found.field, found.pseudo);
	complete_left(packet, length - ip);
	if (found.tcp && read16(packet + found.field) == 0xffff)
		write16(packet + found.field, 0);
}
