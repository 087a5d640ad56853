/* Fuzzes datagrams UDP to TAP: what is written, cut as the kernel cuts it, must be just the frames that
 * were sent, in their order; and nothing else may leave. Datagrams are clear, or sealed with a valid key: then
 * small frames may come in bundles.
 *
 * Input: two bytes of settings, then records; see shapes.h and take_record(). */
#define _GNU_SOURCE
#include "../../vela/dataplane/native/ingress.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../vela/dataplane/native/counters.h"
#include "model.h"
#include "shapes.h"

enum { ID = 7, RECEIVES = 300, OCTETS = 150000, LARGEST = 65507, SEALED_MORE = 21 };

static const uint8_t local_mac[6] = {0x02, 0, 0x5e, 0x10, 0, 1};
static const uint8_t remote_mac[6] = {0x02, 0, 0x5e, 0x10, 0, 2};

/* How writing and sending fail. */
enum failure {
	FAILS_NEVER,
	FAILS_UDP,         /* EINVAL for joined UDP: before Linux 6.2 */
	FAILS_JOINED,      /* EINVAL for all that is joined */
	FAILS_DOWN,        /* EIO: the interface is down */
	FAILS_INTERRUPTED, /* EINTR now and then */
	FAILS_DIVERTING,   /* EAGAIN: the supervisor is busy */
	FAILS_ANSWERING,   /* ECONNREFUSED, once for each answer */
	FAILS_MEMORY,      /* ENOMEM for all that is joined */
	FAILURES,
};

/* What one receive gives: datagrams of one size, the last one may be shorter. */
struct receive {
	uint8_t *data;
	size_t length, size;
};

static struct {
	struct ingress ingress;
	uint64_t counters[WORKER_SLOTS];
	enum failure failure;
	unsigned calls;
	struct receive receives[RECEIVES];
	size_t count, next;
	size_t octets;
	struct list frames, diverted, answers, scratch; /* scratch: of no use after the call */
	struct list got_diverted, got_answers;
	size_t written; /* of frames */
	bool refused_tcp, refused_udp;
	bool sealed;
	_Alignas(KEY_PAGE_ALIGNMENT) struct key_page page;
	struct aead *aead; /* the sender's */
	uint32_t counter;
	struct held {
		uint8_t *data;
		size_t length, size, left;
		uint32_t number;
		bool have[64];
	} held[64]; /* frames in pieces */
	uint64_t expected[WORKER_SLOTS];
} test;

/* Of all inputs, to show that what is tried does happen. */
static struct {
	uint64_t frames, joined, joined_udp, left, pieces, bundled;
} total;

static void sum_up(void)
{
	fprintf(stderr, "reached: frames %llu, joined %llu, joined UDP %llu, checksums left %llu, in pieces %llu, "
			"in bundles %llu\n",
		(unsigned long long)total.frames, (unsigned long long)total.joined,
		(unsigned long long)total.joined_udp, (unsigned long long)total.left,
		(unsigned long long)total.pieces, (unsigned long long)total.bundled);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	atexit(sum_up);
	return 0;
}

static int refuse(int error)
{
	errno = error;
	return -1;
}

static bool interrupted(void)
{
	return test.failure == FAILS_INTERRUPTED && ++test.calls % 3 == 0;
}

static const struct item *next_frame(void)
{
	ENSURE(test.written < test.frames.count);
	return &test.frames.items[test.written++];
}

static void ensure_frame(const struct item *got, const struct item *expected)
{
	const struct list one = {(struct item *)got, 1, 1}, other = {(struct item *)expected, 1, 1};

	ensure_same(&one, &other);
}

static void ensure_whole(const struct todo *todo, const struct item *got)
{
	const struct item *expected = next_frame();
	struct anatomy found;

	ensure_frame(got, expected);
	ENSURE(todo->size == 0 && todo->header == 0);
	ENSURE(todo->flags == (expected->left && test.ingress.virtio_header));
	if (todo->flags) {
		ENSURE(dissect(got->data + 14, got->length - 14, &found));
		ENSURE(todo->start == 14 + found.transport);
		ENSURE(todo->start + todo->offset == 14 + found.field);
		total.left++;
	} else {
		ENSURE(todo->start == 0 && todo->offset == 0);
	}
}

static void ensure_joined(const struct todo *todo, const struct item *got)
{
	size_t before = test.scratch.count;
	struct anatomy found;
	size_t ip = ip_offset(got->data, got->length);

	ENSURE(ip && dissect(got->data + ip, got->length - ip, &found));
	ENSURE(got->length - ip <= 65535);
	ENSURE(todo->start == ip + found.transport && todo->header == ip + found.payload);
	ENSURE(todo->start + todo->offset == ip + found.field);
	ENSURE(read16(got->data + ip + found.field) == found.pseudo);
	ENSURE((todo->kind == 5) == !found.tcp && (todo->kind == 5 || (todo->kind == 1) == found.ipv4));
	ENSURE(!found.ipv4 || sum_of(got->data + ip, found.transport, 0) == 0xffff);
	ENSURE(cut(got->data, got->length, todo, 512, &test.scratch));
	ENSURE(test.scratch.count - before >= 2 && test.scratch.count - before <= 64);
	for (size_t i = before; i < test.scratch.count; i++) {
		const struct item *expected = next_frame();
		struct item finished = *expected;
		if (expected->left) {
			finished.data = keep(expected->length);
			memcpy(finished.data, expected->data, expected->length);
			complete_left(finished.data + 14, finished.length - 14);
			test.scratch.items[i].left = true;
			total.left++;
		}
		ensure_frame(&test.scratch.items[i], &finished);
	}
	total.joined++;
	total.joined_udp += todo->kind == 5;
}

static ssize_t fuzz_writev(int fd, const struct iovec *pieces, int count)
{
	size_t length = 0, header = test.ingress.virtio_header;
	uint64_t *expected = test.expected;

	ENSURE(fd == test.ingress.tap_fd && count >= 1 && count <= 1024);
	for (int i = 0; i < count; i++)
		length += pieces[i].iov_len;
	ENSURE(length >= header + 14);
	if (interrupted())
		return refuse(EINTR);
	uint8_t *data = keep(length), *at = data;
	for (int i = 0; i < count; i++) {
		memcpy(at, pieces[i].iov_base, pieces[i].iov_len);
		at += pieces[i].iov_len;
	}
	const struct item got = {.data = data + header, .length = length - header};
	struct todo todo = {0};
	if (header)
		todo = todo_of(data);
	size_t before = test.written;
	if (todo.kind) {
		bool *refused = todo.kind == 5 ? &test.refused_udp : &test.refused_tcp;
		ENSURE(!*refused);
		if (test.failure == FAILS_JOINED || (test.failure == FAILS_UDP && todo.kind == 5)) {
			*refused = true;
			return refuse(EINVAL);
		}
		ensure_joined(&todo, &got);
		if (test.failure == FAILS_DOWN || test.failure == FAILS_MEMORY) {
			/* Each is to come by itself. */
			test.written = before;
			return refuse(test.failure == FAILS_DOWN ? EIO : ENOMEM);
		}
	} else {
		ensure_whole(&todo, &got);
	}
	if (test.failure == FAILS_DOWN) {
		expected[RX_INTERFACE_DOWN] += test.written - before;
		return refuse(EIO);
	}
	for (size_t i = before; i < test.written; i++) {
		const struct item *frame = &test.frames.items[i];
		expected[RX_FRAMES]++;
		expected[RX_BYTES] += frame->length;
	}
	return (ssize_t)length;
}

static ssize_t fuzz_send(int fd, const void *data, size_t length, int flags)
{
	ENSURE(fd == test.ingress.divert_fd && flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
	list_add(&test.got_diverted, data, length);
	if (test.failure == FAILS_DIVERTING) {
		test.expected[RX_CONGESTED]++;
		return refuse(EAGAIN);
	}
	return (ssize_t)length;
}

static ssize_t fuzz_sendmsg(int fd, const struct msghdr *message, int flags)
{
	size_t length = message->msg_iov->iov_len;

	ENSURE(fd == test.ingress.send_fd && flags == MSG_DONTWAIT && message->msg_iovlen == 1);
	ENSURE((message->msg_name != NULL) == (test.ingress.destination_length > 0));
	ENSURE(message->msg_namelen == test.ingress.destination_length);
	ENSURE(message->msg_controllen == test.ingress.source_address.length);
	if (test.failure == FAILS_ANSWERING && ++test.calls % 2)
		return refuse(ECONNREFUSED);
	list_add(&test.got_answers, message->msg_iov->iov_base, length);
	return (ssize_t)length;
}

static int fuzz_recvmmsg(int fd, struct mmsghdr *messages, unsigned int room, int flags,
			 struct timespec *timeout)
{
	unsigned int count = 0;

	ENSURE(fd == test.ingress.receive_fd && flags == MSG_WAITFORONE && timeout == NULL && room);
	if (interrupted())
		return refuse(EINTR);
	for (; count < room && test.next < test.count; count++) {
		const struct receive *receive = &test.receives[test.next++];
		struct msghdr *message = &messages[count].msg_hdr;
		ENSURE(message->msg_iovlen == 1 && message->msg_iov->iov_len >= 65535);
		memcpy(message->msg_iov->iov_base, receive->data, receive->length);
		messages[count].msg_len = (unsigned int)receive->length;
		if (receive->size == receive->length) {
			message->msg_controllen = 0;
			continue;
		}
		int size = (int)receive->size;
		struct cmsghdr *control = CMSG_FIRSTHDR(message);
		ENSURE(control != NULL && message->msg_controllen >= CMSG_SPACE(sizeof(size)));
		control->cmsg_level = IPPROTO_UDP;
		control->cmsg_type = 104;
		control->cmsg_len = CMSG_LEN(sizeof(size));
		memcpy(CMSG_DATA(control), &size, sizeof(size));
		message->msg_controllen = CMSG_SPACE(sizeof(size));
	}
	return (int)count;
}

/* Nothing grows old. */
static int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
	ENSURE(clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_BOOTTIME);
	*now = (struct timespec){.tv_sec = 5};
	return 0;
}

/* The calls that leave the data path; any other one is a null pointer. */
static const struct io fuzz_io = {
	.writev = fuzz_writev,
	.send = fuzz_send,
	.sendmsg = fuzz_sendmsg,
	.recvmmsg = fuzz_recvmmsg,
	.clock_gettime = fuzz_clock_gettime,
};

static void expect_verification(const uint8_t *datagram, size_t length)
{
	if (length < 19) {
		test.expected[RX_SHORT]++;
	} else if (datagram[2] == 1 && test.sealed) {
		/* There is no key to send with. */
		test.expected[RX_NO_KEY]++;
	} else if (datagram[2] == 1) {
		list_add(&test.answers, datagram, length)->data[2] = 2;
		test.expected[RX_VERIFICATIONS]++;
	} else if (datagram[2] == 2) {
		list_add(&test.diverted, datagram, length);
	} else {
		test.expected[RX_RESERVED]++;
	}
}

static void expect_frame(const uint8_t *frame, size_t length, bool elided)
{
	if (length > test.ingress.encapsulation.frame_limit) {
		test.expected[RX_OVERSIZED]++;
		return;
	}
	struct item *item = list_add(&test.frames, frame, length);
	struct anatomy found;
	if (!elided)
		return;
	if (test.failure != FAILS_DOWN)
		test.expected[RX_ELIDED]++;
	item->left = test.ingress.partial_checksums && dissect(frame + 14, length - 14, &found) &&
		     read16(frame + 14 + found.field) == found.pseudo;
}

/* How a datagram came: by itself, in pieces, or in a bundle. */
enum way { ALONE, JOINED, IN_A_BUNDLE };

static void expect_clear(const uint8_t *datagram, size_t length, enum way way);

/* docs/protocol.md, 3.7. */
static void expect_piece(const uint8_t *datagram, size_t length)
{
	if (length < 10) {
		test.expected[RX_SHORT]++;
		return;
	}
	size_t size = length - 9, whole = read16(datagram + 3), count = 0;
	unsigned index = datagram[2] & 0x3f;
	uint32_t number = read16(datagram + 5) * 65536u + read16(datagram + 7);
	struct held *held = &test.held[number % 64];
	while (count * size < whole)
		count++;
	if (count < 2 || count > 64 || index >= count || (datagram[2] >= 0x80) != (index == count - 1)) {
		test.expected[RX_MALFORMED]++;
		return;
	}
	if (whole > test.ingress.encapsulation.frame_limit + 1) {
		test.expected[RX_OVERSIZED]++;
		return;
	}
	if (!held->data || held->number != number || held->length != whole || held->size != size) {
		test.expected[RX_INCOMPLETE] += held->data && held->left;
		*held = (struct held){keep(1 + count * size), whole, size, count, number, {false}};
		held->data[0] = ID;
	}
	if (held->have[index]) {
		test.expected[RX_DUPLICATE]++;
		return;
	}
	held->have[index] = true;
	memcpy(held->data + 1 + index * size, datagram + 9, size);
	if (--held->left)
		return;
	total.pieces++;
	expect_clear(held->data, 1 + whole, JOINED);
}

/* docs/protocol.md, 3.10. */
static void expect_bundle(const uint8_t *datagram, size_t length)
{
	for (size_t at = 2;;) {
		size_t text = at + 2 <= length ? read16(datagram + at) : 0, before = test.frames.count;
		if (text == 0 || at + 2 + text > length) {
			test.expected[RX_MALFORMED]++;
			return;
		}
		expect_clear(datagram + at + 1, 1 + text, IN_A_BUNDLE);
		total.bundled += test.frames.count - before;
		at += 2 + text;
		if (at == length)
			return;
	}
}

/* docs/protocol.md, section 3. */
static void expect(const uint8_t *datagram, size_t length)
{
	if (length && datagram[0] != ID) {
		list_add(&test.diverted, datagram, length);
		return;
	}
	if (length < 2) {
		test.expected[RX_SHORT]++;
		return;
	}
	if (test.sealed && datagram[1] == 0x42)
		expect_bundle(datagram, length);
	else
		expect_clear(datagram, length, ALONE);
}

static void expect_clear(const uint8_t *datagram, size_t length, enum way way)
{
	unsigned first = datagram[1], version = first / 16;
	size_t before_frames = test.frames.count;

	if (way != ALONE && (first == 0x41 || first == 0x44)) {
		test.expected[RX_RESERVED]++;
	} else if (first == 0x44) {
		expect_piece(datagram, length);
	} else if (first == 0x41) {
		expect_verification(datagram, length);
	} else if (first == 0x42 || first == 0x43) {
		test.expected[RX_RESERVED]++;
	} else if (first != 0x40 && (version == 4 || version == 6)) {
		if (!is_packet(datagram + 1, length - 1, version)) {
			test.expected[RX_MALFORMED]++;
			return;
		}
		uint8_t *frame = keep(14 + length - 1);
		memcpy(frame, local_mac, 6);
		memcpy(frame + 6, remote_mac, 6);
		write16(frame + 12, version == 4 ? 0x0800 : 0x86dd);
		memcpy(frame + 14, datagram + 1, length - 1);
		expect_frame(frame, 14 + length - 1, true);
	} else {
		size_t before = first == 0x40 ? 2 : 1;
		if (length < before + 14)
			test.expected[RX_SHORT]++;
		else
			expect_frame(datagram + before, length - before, false);
	}
	test.expected[RX_JOINED] += way == JOINED && test.frames.count > before_frames;
}

/* Seal one of the circuit, as its remote does. Returns its length. */
static size_t seal(const uint8_t *datagram, size_t length, uint8_t *sealed)
{
	uint32_t counter = ++test.counter;

	sealed[0] = ID;
	sealed[1] = 0x42;
	write16(sealed + 2, counter >> 16);
	write16(sealed + 4, counter & 0xffff);
	memcpy(sealed + 6, datagram + 1, length - 1);
	ENSURE(aead_seal(test.aead, counter, sealed + 6, length - 1));
	return length + SEALED_MORE;
}

/* Let it come by itself, or with the one before where UDP GRO would join the two. */
static void add_datagram(const uint8_t *datagram, size_t length, bool joined)
{
	static uint8_t sealed[LARGEST];
	struct receive *last = test.count ? &test.receives[test.count - 1] : NULL;

	if (test.sealed && length > LARGEST - SEALED_MORE)
		length = LARGEST - SEALED_MORE;
	expect(datagram, length);
	if (test.sealed && length >= 2 && datagram[0] == ID) {
		length = seal(datagram, length, sealed);
		datagram = sealed;
	}
	test.octets += length;
	if (joined && length && last && last->length && last->length % last->size == 0 &&
	    length <= last->size && last->length + length <= 65535) {
		uint8_t *data = keep(last->length + length);
		memcpy(data, last->data, last->length);
		memcpy(data + last->length, datagram, length);
		last->data = data;
		last->length += length;
		return;
	}
	uint8_t *data = keep(length);
	memcpy(data, datagram, length);
	test.receives[test.count++] = (struct receive){data, length, length ? length : 1};
}

static size_t write_datagram(bool elided, const uint8_t *frame, size_t length, uint8_t *datagram)
{
	size_t at = 0;

	datagram[at++] = ID;
	if (elided) {
		frame += 14;
		length -= 14;
	} else if (frame[0] / 16 == 4 || frame[0] / 16 == 6) {
		datagram[at++] = 0x40;
	}
	memcpy(datagram + at, frame, length);
	return at + length;
}

/* A flow: packets that continue each other, but for the damage. */
static void take_flow(struct input *input, unsigned what)
{
	static uint8_t frame[SHAPE_MAX + 64], datagram[SHAPE_MAX + 64];
	struct shape shape = shape_take(input);
	unsigned count = 1 + take8(input) % 70;
	unsigned changed = count, change = 0, at = 0;
	unsigned last_payload = what & 0x40 ? take16(input) : 65535;
	unsigned last_flags = what & 0x40 ? take8(input) : 0;
	size_t transport;

	if (what & 8) {
		changed = take8(input) % count;
		at = take16(input);
		change = take8(input);
	}
	for (unsigned i = 0; i < count && test.octets < OCTETS && test.count < RECEIVES; i++) {
		struct shape each = shape;
		if (i + 1 == count) {
			each.payload = last_payload < shape.payload ? last_payload : shape.payload;
			each.flags ^= last_flags;
		}
		size_t length = shape_write(&each, local_mac, remote_mac, frame, &transport);
		if (i == changed) {
			frame[at % length] ^= (uint8_t)change;
			if (what & 0x80)
				mend(frame, length);
		}
		bool elided = each.address == 0 && each.tags == 0 && !(what & 0x20);
		length = write_datagram(elided, frame, length, datagram);
		if (length > LARGEST)
			length = LARGEST;
		add_datagram(datagram, length, what & 0x10 && i);
		shape.sequence += (uint32_t)each.payload;
		shape.identification = (shape.identification + 1) % 65536;
	}
}

/* A frame in pieces, of which one may be missing, one comes again, and one is damaged. */
static void take_pieces(struct input *input, unsigned what)
{
	static uint8_t frame[SHAPE_MAX + 64], datagram[SHAPE_MAX + 64], piece[SHAPE_MAX + 80];
	struct shape shape = shape_take(input);
	size_t transport, size = 1 + take16(input) % 2000;
	unsigned number = take8(input), missing = 64, again = 64, damaged = 64, at = 0, change = 0;

	if (what & 8) {
		missing = take8(input) % 65;
		again = take8(input) % 65;
	}
	if (what & 0x40) {
		damaged = take8(input) % 65;
		at = take16(input);
		change = take8(input);
	}
	size_t length = shape_write(&shape, local_mac, remote_mac, frame, &transport);
	length = write_datagram(shape.address == 0 && shape.tags == 0 && !(what & 0x20), frame, length, datagram);
	length = length > LARGEST ? LARGEST - 1 : length - 1;
	for (unsigned i = 0; i * size < length && i < 70; i++) {
		size_t left = length - i * size, own = 9 + size;
		piece[0] = ID;
		piece[1] = 0x44;
		piece[2] = (uint8_t)((i & 0x3f) | (left <= size ? 0x80 : 0));
		write16(piece + 3, (unsigned)length);
		write16(piece + 5, what & 0x80 ? 0xffff : 0);
		write16(piece + 7, number);
		memset(piece + 9, 0, size);
		memcpy(piece + 9, datagram + 1 + i * size, left < size ? left : size);
		if (i == damaged) {
			piece[2 + at % (own - 2)] ^= (uint8_t)change;
			own -= what & 8 ? at % own : 0;
		}
		for (int times = (i != missing) + (i == again); times > 0; times--) {
			if (test.octets < OCTETS && test.count < RECEIVES)
				add_datagram(piece, own, what & 0x10);
		}
	}
}

static void take_bytes(struct input *input, unsigned what)
{
	static uint8_t datagram[65536];
	size_t length = take16(input);

	memset(datagram, (int)(what >> 5 & 1), length);
	for (size_t i = 0; i < length && i < 64; i++)
		datagram[i] = (uint8_t)take8(input);
	if (what & 8)
		datagram[0] = ID;
	add_datagram(datagram, length > LARGEST ? LARGEST : length, what & 0x10);
}

/* Small frames in one, which may be changed, and cut off. */
static void take_bundle(struct input *input, unsigned what)
{
	static uint8_t frame[SHAPE_MAX + 64], text[SHAPE_MAX + 64], bundle[4 * (SHAPE_MAX + 64)];
	unsigned count = take8(input) % 24, at = take16(input), change = take8(input);
	size_t transport, used = 2;

	bundle[0] = ID;
	bundle[1] = 0x42;
	for (unsigned i = 0; i < count && used < SHAPE_MAX; i++) {
		struct shape shape = shape_take(input);
		shape.payload %= 600;
		size_t length = shape_write(&shape, local_mac, remote_mac, frame, &transport);
		bool elided = shape.address == 0 && shape.tags == 0 && !(what & 0x20);
		length = write_datagram(elided, frame, length, text) - 1;
		write16(bundle + used, (unsigned)length);
		memcpy(bundle + used + 2, text + 1, length);
		used += 2 + length;
	}
	if (what & 8)
		bundle[2 + at % used] ^= (uint8_t)change;
	if (what & 0x40)
		used = 2 + at % used;
	add_datagram(bundle, used > LARGEST ? LARGEST : used, what & 0x10);
}

static void take_verification(struct input *input, unsigned what)
{
	uint8_t datagram[600] = {ID, 0x41};
	size_t length = take8(input) * 2;

	datagram[2] = (uint8_t)(what & 0x80 ? take8(input) : 1 + (what >> 5 & 1));
	add_datagram(datagram, length < 2 ? 2 : length, what & 0x10);
}

static void take_record(struct input *input)
{
	unsigned what = take8(input);

	switch (what & 7) {
	case 0:
		take_bytes(input, what);
		break;
	case 1:
		take_verification(input, what);
		break;
	case 3:
		take_pieces(input, what);
		break;
	case 4:
		take_bundle(input, what);
		break;
	default:
		take_flow(input, what);
	}
}

/* By the buffers that all receives of a batch share. */
static void drive_batches(void)
{
	size_t batches = 0;

	while (test.next < test.count) {
		ENSURE(ingress_batch(&test.ingress) == 0);
		batches++;
	}
	ENSURE(test.counters[INGRESS_PROGRESS] == batches);
}

/* Each receive in memory of its own, with not a byte more than it needs. */
static void drive_receives(bool flush)
{
	static uint8_t *memory[RECEIVES];
	size_t freed = 0;

	for (size_t i = 0; i < test.count; i++) {
		const struct receive *receive = &test.receives[i];
		memory[i] = malloc(receive->length);
		memcpy(memory[i], receive->data, receive->length);
		if (test.sealed)
			opener_look(&test.ingress.opener);
		ingress_datagrams(&test.ingress, memory[i], receive->length, receive->size);
		if (!flush)
			continue;
		ingress_flush(&test.ingress);
		free(memory[freed++]);
	}
	ingress_flush(&test.ingress);
	while (freed < test.count)
		free(memory[freed++]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const size_t frame_limits[8] = {1485, 9014, 65505, 1514, 60, 14, 1298, 4000};
	static struct list *const lists[] = {&test.frames,  &test.diverted,	&test.answers,
					     &test.scratch, &test.got_diverted, &test.got_answers};
	struct input input = {data, size};
	unsigned settings = take8(&input), more = take8(&input);
	struct ingress *ingress = &test.ingress;

	forget(lists, sizeof(lists) / sizeof(lists[0]));
	memset(test.counters, 0, sizeof(test.counters));
	memset(test.expected, 0, sizeof(test.expected));
	test.failure = (enum failure)((more >> 3 & 7) % FAILURES);
	test.calls = 0;
	test.count = test.next = test.octets = test.written = 0;
	memset(test.held, 0, sizeof(test.held));
	/* Nor are they joined where the kernel is known not to take them. */
	test.refused_tcp = settings & 2;
	test.refused_udp = settings & 128;

	memset(ingress, 0, sizeof(*ingress));
	ingress->io = &fuzz_io;
	encapsulation_init(&ingress->encapsulation, ID, local_mac, remote_mac, ELISION_KNOWN,
			   frame_limits[more & 7]);
	ingress->tap_fd = 1000;
	ingress->send_fd = 1001;
	ingress->receive_fd = 1002;
	ingress->divert_fd = 1003;
	ingress->partial_checksums = settings & 4;
	ingress->virtio_header = settings & 8 ? 0 : sizeof(struct virtio_header);
	ingress->destination_length = settings & 16 ? sizeof(struct sockaddr_in) : 0;
	ingress->counters = test.counters;
	ingress->gro = !(settings & 1);
	ingress->coalesce_tcp = ingress->virtio_header && !test.refused_tcp;
	ingress->coalesce_udp = ingress->virtio_header && !test.refused_udp;

	/* A batch of receives would wait and poll: the tests of the worker do that. */
	test.sealed = more & 64 && settings & 32;
	if (test.sealed) {
		ENSURE(aead_unavailable() == NULL);
		memset(&test.page, 0, sizeof(test.page));
		struct key_slot *slot = &test.page.slots[0];
		*slot = (struct key_slot){.serial = 1, .suite = 1, .expires_ns = UINT64_MAX, .limit = 1 << 28};
		test.aead = aead_open((enum suite)1, slot->rx_key, slot->rx_salt, AEAD_SEALS);
		test.counter = 0;
		ingress->opener = (struct opener){.io = &fuzz_io, .page = &test.page, .sequences = 1};
		ingress->sealer = (struct sealer){
			.io = &fuzz_io, .page = &test.page, .circuit_id = ID, .room = SEQUENCES};
	}
	while (input.left && test.count < RECEIVES && test.octets < OCTETS)
		take_record(&input);

	ENSURE(ingress_init(ingress));
	if (settings & 32)
		drive_receives(settings & 64);
	else
		drive_batches();
	ENSURE(ingress->coalesced.count == 0);
	ingress_free(ingress);
	if (test.sealed)
		aead_close(test.aead);

	ENSURE(test.written == test.frames.count);
	ensure_same(&test.got_diverted, &test.diverted);
	ensure_same(&test.got_answers, &test.answers);
	test.counters[INGRESS_PROGRESS] = 0;
	for (size_t i = 0; i < WORKER_SLOTS; i++)
		ENSURE(test.counters[i] == test.expected[i]);
	total.frames += test.frames.count;
	return 0;
}
