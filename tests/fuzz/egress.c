/* Fuzzes frames TAP to UDP: what is sent must give the receiver what the kernel itself would have cut
 * and completed. Settings and frames come from the input, errors of sockets too.
 *
 * Input: three bytes of settings, then records; see shapes.h and take_record(). */
#define _GNU_SOURCE
#include "../../vela/dataplane/native/egress.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../vela/dataplane/native/counters.h"
#include "model.h"
#include "shapes.h"

enum { ID = 7, RECORDS = 80, OCTETS = 150000 };

static const uint8_t local_mac[6] = {0x02, 0, 0x5e, 0x10, 0, 1};
static const uint8_t remote_mac[6] = {0x02, 0, 0x5e, 0x10, 0, 2};

/* How sending fails. */
enum failure {
	FAILS_NEVER,
	FAILS_MTU,         /* EINVAL for segments above a size */
	FAILS_SIZE,        /* EMSGSIZE likewise */
	FAILS_OFFLOAD,     /* EIO for segments */
	FAILS_ONCE,        /* ECONNREFUSED now and then, never twice */
	FAILS_INTERRUPTED, /* EINTR now and then */
	FAILS_LARGE,       /* EMSGSIZE for every datagram above a size */
	FAILURES,
};

static struct {
	struct egress egress;
	uint64_t counters[WORKER_SLOTS];
	enum failure failure;
	unsigned calls, refused, tries;
	size_t too_large; /* segments of this size were refused */
	time_t refused_at, clock_s, queue_s;
	bool stands; /* the queue, of which there is one since the first frame that counts was read */
	bool queued;
	bool connected; /* getsockopt() tells of the route */
	bool ready;     /* or the TAP has to be polled first */
	struct list frames; /* to be read from the TAP, with their virtio headers */
	size_t next;
	struct list sent, received, expected;
	uint64_t fragmented, lost, elided, errors, not_ip, shed, relieved;
	uint32_t number; /* of the next frame in pieces */
	uint64_t told;	 /* messages to senders */
} test;

/* Of all inputs, to show that what is tried does happen. */
static struct {
	uint64_t frames, cut, segmented, singly, left, renewed, polled, pieces, marked, told, shed, relieved;
} total;

static void sum_up(void)
{
	fprintf(stderr,
		"reached: frames %llu, cut %llu, sent segmented %llu, checksums left %llu, "
		"limits renewed %llu, sent singly %llu, TAP polled %llu, pieces %llu, marked %llu, told %llu, "
		"lost early %llu, marked early %llu\n",
		(unsigned long long)total.frames, (unsigned long long)total.cut,
		(unsigned long long)total.segmented, (unsigned long long)total.left,
		(unsigned long long)total.renewed, (unsigned long long)total.singly,
		(unsigned long long)total.polled, (unsigned long long)total.pieces,
		(unsigned long long)total.marked, (unsigned long long)total.told,
		(unsigned long long)total.shed, (unsigned long long)total.relieved);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	atexit(sum_up);
	return 0;
}

static ssize_t fuzz_preadv2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
	ENSURE(flags == 0 || (flags == RWF_NOWAIT && test.egress.nowait));
	ENSURE(fd == test.egress.tap_fd && count == 1 && offset == -1);
	if (test.failure == FAILS_INTERRUPTED && ++test.calls % 3 == 0) {
		errno = EINTR;
		return -1;
	}
	if (test.next == test.frames.count || !test.ready) {
		errno = EAGAIN;
		return -1;
	}
	const struct item *item = &test.frames.items[test.next++];
	size_t length = item->length < pieces->iov_len ? item->length : pieces->iov_len;
	memcpy(pieces->iov_base, item->data, length);
	return (ssize_t)length;
}

/* Behind a read that found nothing. */
static int fuzz_poll(struct pollfd *waiting, nfds_t count, int timeout_ms)
{
	ENSURE(!test.egress.nowait && count == 1 && waiting->fd == test.egress.tap_fd);
	ENSURE(waiting->events == POLLIN && timeout_ms == -1 && !test.ready);
	waiting->revents = POLLIN;
	test.ready = true;
	total.polled++;
	return 1;
}

static int refuse(int error)
{
	errno = error;
	return -1;
}

/* Not to be tried again with segments of this size, for a while. */
static int refuse_segments(int error, size_t size)
{
	if (test.too_large == size && test.refused_at == test.clock_s && !test.connected) {
		/* Nothing tells that it is the size: it may be what ICMP said of an earlier datagram. */
		ENSURE(++test.tries < SEND_TRIES);
		return refuse(error);
	}
	test.tries = 0;
	if (size >= test.too_large) {
		ENSURE(test.clock_s >= test.refused_at + REFUSED_S);
		total.renewed++;
	}
	test.too_large = size;
	test.refused_at = test.clock_s;
	return refuse(error);
}

/* The route takes 1000 bytes where segments of more are refused; else as many as it did. */
static int fuzz_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
	bool narrow = test.failure == FAILS_MTU || test.failure == FAILS_SIZE;
	int answer;

	ENSURE(fd == test.egress.send_fd && *length == sizeof(answer));
	if (level == SOL_SOCKET && option == SO_DOMAIN) {
		answer = AF_INET;
	} else if (option == IP_MTU_DISCOVER) {
		ENSURE(level == IPPROTO_IP);
		answer = test.connected ? IP_PMTUDISC_WANT : IP_PMTUDISC_OMIT;
	} else {
		ENSURE(level == IPPROTO_IP && option == IP_MTU);
		if (!test.connected)
			return refuse(ENOTCONN);
		answer = 28 + (narrow ? 1000 : (int)test.egress.route_limit);
	}
	memcpy(value, &answer, sizeof(answer));
	return 0;
}

/* Refusals grow old from batch to batch. */
static int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
	if (clock == CLOCK_MONOTONIC) {
		/* By it, either no time passes, or more than a queue may last. */
		*now = (struct timespec){.tv_sec = test.queue_s += test.stands};
		return 0;
	}
	ENSURE(clock == CLOCK_MONOTONIC_COARSE);
	*now = (struct timespec){.tv_sec = test.clock_s += REFUSED_S};
	return 0;
}

static uint8_t tos_of_send(const struct msghdr *message)
{
	bool ipv4 = test.egress.marking.outer_ipv4;
	struct cmsghdr *control = message->msg_controllen ? CMSG_FIRSTHDR(message) : NULL;
	int tos;

	if (control && control->cmsg_level == IPPROTO_UDP)
		control = CMSG_NXTHDR((struct msghdr *)message, control);
	if (control == NULL)
		return default_tos(&test.egress.marking);
	ENSURE(control->cmsg_level == (ipv4 ? IPPROTO_IP : IPPROTO_IPV6));
	ENSURE(control->cmsg_type == (ipv4 ? IP_TOS : IPV6_TCLASS));
	ENSURE(control->cmsg_len == CMSG_LEN(sizeof(tos)));
	ENSURE(CMSG_NXTHDR((struct msghdr *)message, control) == NULL);
	memcpy(&tos, CMSG_DATA(control), sizeof(tos));
	ENSURE(tos >= 0 && tos <= UINT8_MAX && tos != default_tos(&test.egress.marking));
	total.marked++;
	return (uint8_t)tos;
}

/* RFC 6040, section 4.1; RFC 2983. */
static uint8_t expected_tos(const struct item *frame)
{
	const struct marking *marking = &test.egress.marking;
	size_t ip = ip_offset(frame->data, frame->length);
	const uint8_t *packet = frame->data + ip;
	unsigned inner = 0;

	if (ip && frame->length >= ip + 20 && packet[0] >> 4 == 4)
		inner = packet[1];
	else if (ip && frame->length >= ip + 40 && packet[0] >> 4 == 6)
		inner = read16(packet) >> 4 & 0xff;
	unsigned dscp = marking->dscp < 0 ? inner >> 2 : (unsigned)marking->dscp;
	return (uint8_t)(dscp << 2 | (marking->carry_ecn ? inner & 3 : 0));
}

static size_t segment_size(const struct msghdr *message)
{
	const struct cmsghdr *control = message->msg_controllen ? CMSG_FIRSTHDR(message) : NULL;
	uint16_t size;

	if (control == NULL || control->cmsg_level != IPPROTO_UDP)
		return 0;
	ENSURE(control->cmsg_type == 103);
	ENSURE(control->cmsg_len == CMSG_LEN(sizeof(size)));
	memcpy(&size, CMSG_DATA(control), sizeof(size));
	ENSURE(size > 0);
	return size;
}

static size_t length_of(const struct msghdr *message)
{
	size_t length = 0;

	for (size_t i = 0; i < message->msg_iovlen; i++)
		length += message->msg_iov[i].iov_len;
	return length;
}

/* See net/ipv4/udp.c, udp_sendmsg and udp_send_skb. */
static ssize_t fuzz_sendmsg(int fd, const struct msghdr *message, int flags)
{
	size_t length = length_of(message), size = segment_size(message);
	uint8_t tos = tos_of_send(message);
	bool lost = false;

	ENSURE(fd == test.egress.send_fd && flags == 0);
	ENSURE((message->msg_name != NULL) == (test.egress.destination_length > 0));
	test.calls++;
	ENSURE(length > 0 && length <= 65507);
	if (size)
		ENSURE(test.egress.segment && size <= test.egress.route_limit && length > size && length <= 64 * size);
	switch (test.failure) {
	case FAILS_MTU:
	case FAILS_SIZE:
		if (size > 1000)
			return refuse_segments(test.failure == FAILS_MTU ? EINVAL : EMSGSIZE, size);
		break;
	case FAILS_OFFLOAD:
		if (size)
			return refuse_segments(EIO, 0);
		break;
	case FAILS_ONCE:
		if (test.calls % 2)
			return refuse(ECONNREFUSED);
		break;
	case FAILS_INTERRUPTED:
		if (test.calls % 3 == 0)
			return refuse(EINTR);
		break;
	case FAILS_LARGE:
		/* Each is tried several times. */
		if ((size ? size : length) > 900) {
			if (size || ++test.refused % SEND_TRIES)
				return refuse(EMSGSIZE);
			lost = true;
		}
		break;
	default:
		break;
	}
	uint8_t *data = keep(length), *at = data;
	for (size_t i = 0; i < message->msg_iovlen; i++) {
		memcpy(at, message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
		at += message->msg_iov[i].iov_len;
	}
	for (size_t start = 0; start < length; start += size ? size : length) {
		size_t left = length - start;
		list_add(&test.sent, data + start, size && size < left ? size : left)->tos = tos;
	}
	total.segmented += size > 0;
	if (!size && !lost)
		test.fragmented += length > test.egress.datagram_limit;
	test.lost += lost;
	return lost ? refuse(EMSGSIZE) : (ssize_t)length;
}

/* See net/socket.c, __sys_sendmmsg: what goes wrong behind the first is not told, and met again by who
 * goes on from there. */
static int fuzz_sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
	ENSURE(count > 0 && count <= RUN_MAX);
	for (unsigned int i = 0; i < count; i++) {
		const struct msghdr *message = &messages[i].msg_hdr;
		/* Counted as one try of two when it is the first. */
		if (i > 0 && test.failure == FAILS_LARGE && length_of(message) > 900)
			return (int)i;
		if (fuzz_sendmsg(fd, message, flags) < 0)
			return i > 0 ? (int)i : -1;
		total.singly += count > 1;
	}
	return (int)count;
}

/* Tell whether an expected frame has this packet. One that came unfinished may be quoted without its checksum. */
static bool was_given(const uint8_t *packet, size_t length)
{
	for (size_t i = 0; i < test.expected.count; i++) {
		const struct item *item = &test.expected.items[i];
		size_t ip = ip_offset(item->data, item->length);
		struct anatomy found;
		if (ip == 0 || item->length - ip < length)
			continue;
		size_t checksum = dissect(item->data + ip, item->length - ip, &found) ? found.field : length;
		size_t before = checksum < length ? checksum : length;
		size_t behind = checksum + 2 < length ? checksum + 2 : length;
		if (memcmp(item->data + ip, packet, before) == 0 &&
		    memcmp(item->data + ip + behind, packet + behind, length - behind) == 0)
			return true;
	}
	return false;
}

/* What the sender of a packet that is too large gets. RFC 792, RFC 1191; RFC 4443, section 3.2. */
static void ensure_told(const uint8_t *frame, size_t length)
{
	size_t ip = ip_offset(frame, length);
	const uint8_t *packet = frame + ip, *icmp, *quoted;

	ENSURE(ip && ip <= 22 && !(frame[0] & 1) && !(frame[6] & 1));
	length -= ip;
	if (is_packet(packet, length, 4)) {
		ENSURE(read16(packet + 2) == length && length <= 576 && packet[0] == 0x45 && packet[9] == 1);
		ENSURE(sum_of(packet, 20, 0) == 0xffff && sum_of(packet + 20, length - 20, 0) == 0xffff);
		icmp = packet + 20;
		quoted = icmp + 8;
		ENSURE(read16(icmp) == 0x0304 && read16(icmp + 4) == 0);
		ENSURE(read16(icmp + 6) >= 68 && read16(quoted + 2) > read16(icmp + 6));
		ENSURE(memcmp(packet + 12, quoted + 16, 4) == 0 && memcmp(packet + 16, quoted + 12, 4) == 0);
		ENSURE((read16(quoted + 6) & 0x5fff) == 0x4000);
		ENSURE(packet[12] < 224 && packet[16] < 224);
	} else {
		ENSURE(is_packet(packet, length, 6) && 40 + read16(packet + 4) == length && length == 1280);
		ENSURE(packet[6] == 58);
		unsigned pseudo = sum_of(packet + 8, 32, (unsigned)length - 40 + 58);
		ENSURE(sum_of(packet + 40, length - 40, pseudo) == 0xffff);
		icmp = packet + 40;
		quoted = icmp + 8;
		ENSURE(read16(icmp) == 0x0200 && read16(icmp + 4) == 0);
		ENSURE(read16(icmp + 6) >= 1280 && 40 + read16(quoted + 4) > read16(icmp + 6));
		ENSURE(memcmp(packet + 8, quoted + 24, 16) == 0 && memcmp(packet + 24, quoted + 8, 16) == 0);
		ENSURE(packet[8] != 0xff && packet[24] != 0xff);
	}
	ENSURE(read16(icmp + 6) < test.egress.route_limit || read16(icmp + 6) == 1280);
	ENSURE(was_given(quoted, length - (size_t)(quoted - packet)));
}

static ssize_t fuzz_writev(int fd, const struct iovec *pieces, int count)
{
	static const uint8_t finished[10];
	size_t header = test.egress.virtio_header;

	ENSURE(fd == test.egress.tap_fd && count == 1 && test.egress.packet_too_big);
	ENSURE(pieces->iov_len > header && memcmp(pieces->iov_base, finished, header) == 0);
	ensure_told((const uint8_t *)pieces->iov_base + header, pieces->iov_len - header);
	test.told++;
	total.told++;
	return (ssize_t)pieces->iov_len;
}

/* The calls that leave the data path; any other one is a null pointer. */
static const struct io fuzz_io = {
	.preadv2 = fuzz_preadv2,
	.poll = fuzz_poll,
	.writev = fuzz_writev,
	.getsockopt = fuzz_getsockopt,
	.clock_gettime = fuzz_clock_gettime,
	.sendmsg = fuzz_sendmsg,
	.sendmmsg = fuzz_sendmmsg,
};

static bool can_be_elided(const uint8_t *frame, size_t length)
{
	unsigned type = read16(frame + 12);

	if (test.egress.encapsulation.elision == ELISION_NEVER)
		return false;
	if (test.egress.encapsulation.elision == ELISION_KNOWN &&
	    (memcmp(frame, remote_mac, 6) != 0 || memcmp(frame + 6, local_mac, 6) != 0))
		return false;
	return (type == 0x0800 && is_packet(frame + 14, length - 14, 4)) ||
	       (type == 0x86dd && is_packet(frame + 14, length - 14, 6));
}

/* Whether a receiver would complete its checksum; found says where that is. */
static bool is_partial(const uint8_t *frame, size_t length, struct anatomy *found)
{
	if (!test.egress.partial_checksums || test.egress.encapsulation.elision != ELISION_KNOWN)
		return false;
	return can_be_elided(frame, length) && dissect(frame + 14, length - 14, found) &&
	       read16(frame + 14 + found->field) == found->pseudo;
}

/* Mark a frame that is read while a queue stands; true: it, or one of its segments, is to be lost. */
static bool relieve(uint8_t *frame, size_t length)
{
	size_t ip = length < 512 ? 0 : ip_offset(frame, length);
	uint8_t *packet = frame + ip;

	if (!ip)
		return false;
	bool ipv4 = ip + 20 <= length && packet[0] / 16 == 4;
	bool ipv6 = ip + 40 <= length && packet[0] / 16 == 6;
	unsigned tos = ipv4 ? packet[1] : ipv6 ? read16(packet) / 16 % 256 : 0;
	if (tos / 64 == 3)
		return false;
	if (!test.queued || !test.stands) {
		test.queued = true;
		return false;
	}
	if ((ipv4 || ipv6) && tos % 4 == 0)
		return true;
	test.relieved++;
	total.relieved++;
	if (ipv6) {
		write16(packet, read16(packet) | 3 << 4);
	} else if (ipv4) {
		/* The sum of the header stays what it was. */
		packet[1] |= 3;
		unsigned sum = (0xffff - read16(packet + 10)) + (3 - tos % 4);
		write16(packet + 10, 0xffff - (sum % 0x10000 + sum / 0x10000));
	}
	return false;
}

static void expect(const uint8_t *frame, size_t length, const struct todo *todo)
{
	struct anatomy found;
	size_t before = test.expected.count;
	bool unfinished = todo->flags & 1, super = todo->kind != 0;

	if (length < 14 || length > 14 + 8 + 65535 ||
	    (super ? ip_offset(frame, length) == 0 : length > test.egress.encapsulation.frame_limit)) {
		test.errors++;
		return;
	}
	uint8_t *copy = keep(length);
	memcpy(copy, frame, length);
	bool lose = relieve(copy, length);
	if (lose && !super) {
		test.shed++;
		total.shed++;
		return;
	}
	bool looks = is_partial(copy, length, &found);
	bool leave = looks && unfinished && todo->start == 14 + found.transport &&
		     todo->start + todo->offset == 14 + found.field;
	if (!super && unfinished) {
		if (!complete(copy, length, todo->start, todo->offset)) {
			test.errors++;
			return;
		}
		if (!leave)
			looks = is_partial(copy, length, &found);
	}
	bool elided = can_be_elided(copy, length) && (leave || !looks);
	if (!elided && test.egress.encapsulation.elision == ELISION_ALWAYS) {
		test.not_ip++;
		return;
	}
	if (!super) {
		list_add(&test.expected, copy, length);
	} else {
		bool escaped = copy[0] / 16 == 4 || copy[0] / 16 == 6;
		size_t room = elided ? 512 + 13 : escaped ? 510 : 511;
		if (!cut(copy, length, todo, room, &test.expected) ||
		    test.expected.items[before].length > test.egress.encapsulation.frame_limit) {
			test.expected.count = before;
			test.errors++;
			return;
		}
		total.cut++;
	}
	if (lose) {
		test.shed++;
		total.shed++;
		test.expected.count--;
		memmove(test.expected.items + before, test.expected.items + before + 1,
			(test.expected.count - before) * sizeof(*test.expected.items));
	}
	for (size_t i = before; elided && i < test.expected.count; i++) {
		/* What the receiver puts there. */
		memcpy(test.expected.items[i].data, remote_mac, 6);
		memcpy(test.expected.items[i].data + 6, local_mac, 6);
		test.elided++;
		/* Where a guest gave not the sum of the pseudo-header, a segment may by chance look left
		 * when it is finished. */
		struct item *item = &test.expected.items[i];
		if (super && !leave && test.egress.partial_checksums &&
		    test.egress.encapsulation.elision == ELISION_KNOWN)
			complete_left(item->data + 14, item->length - 14);
	}
}

static void add_record(const uint8_t *virtio, const uint8_t *frame, size_t length)
{
	uint8_t *record = keep(10 + length);

	memcpy(record, virtio, 10);
	memcpy(record + 10, frame, length);
	list_add(&test.frames, record, 10 + length);
}

/* A record: what it is and how many bytes of it are changed; then that. */
static void take_record(struct input *input)
{
	static uint8_t frame[SHAPE_MAX + 64];
	uint8_t virtio[10] = {0};
	unsigned what = take8(input);
	size_t length;

	if ((what & 7) == 0) {
		length = take16(input) + (what & 0x80 ? 64 : 0);
		memset(frame, (int)(what >> 3 & 1), length);
		for (size_t i = 0; i < 10; i++)
			virtio[i] = (uint8_t)take8(input);
		for (size_t i = 0; i < length && i < 64; i++)
			frame[i] = (uint8_t)take8(input);
	} else {
		struct shape shape = shape_take(input);
		size_t transport;
		uint16_t words[4] = {0};
		bool super = what & 1, unfinished = super || what & 2;
		if (super)
			words[1] = (uint16_t)take16(input);
		/* Some thousand segments are enough. */
		if (super && words[1] < 64 && shape.payload > 1500)
			shape.payload %= 1500;
		if (unfinished && shape.checksum == CHECKSUM_RIGHT)
			shape.checksum = CHECKSUM_LEFT;
		length = shape_write(&shape, remote_mac, local_mac, frame, &transport);
		if (unfinished) {
			virtio[0] = 1;
			virtio[1] = super ? (shape.tcp ? (shape.ipv6 ? 4 : 1) : 5) : 0;
			if (super && shape.tcp && shape.flags & 0x80)
				virtio[1] |= 0x80;
			words[2] = (uint16_t)transport;
			words[3] = shape.tcp ? 16 : 6;
			memcpy(virtio + 2, words, sizeof(words));
		}
	}
	for (unsigned i = 0; i < (what >> 4 & 3); i++) {
		size_t at = take16(input) % (10 + length);
		uint8_t change = (uint8_t)take8(input);
		if (at < 10)
			virtio[at] ^= change;
		else
			frame[at - 10] ^= change;
	}
	add_record(virtio, frame, length);
	struct item *record = &test.frames.items[test.frames.count - 1];
	if ((what & 0x47) == 0x40 && record->length > what >> 3)
		record->length = what >> 3;
}

/* By the buffer that all frames of a batch share. */
static void drive_batches(void)
{
	size_t batches = 0;

	while (test.next < test.frames.count) {
		ENSURE(egress_batch(&test.egress) == 0);
		ENSURE(++batches <= RECORDS);
	}
	ENSURE(test.counters[EGRESS_PROGRESS] == batches);
}

/* Each frame in memory of its own, with not a byte more than it needs. */
static void drive_frames(void)
{
	uint8_t *memory[RECORDS];
	size_t count = test.frames.count;

	for (size_t i = 0; i < count; i++) {
		const struct item *item = &test.frames.items[i];
		struct virtio_header header = {0};
		memory[i] = NULL;
		if (item->length < test.egress.virtio_header)
			continue;
		size_t length = item->length - test.egress.virtio_header;
		memcpy(&header, item->data, test.egress.virtio_header);
		memory[i] = malloc(HEADROOM + length);
		memcpy(memory[i] + HEADROOM, item->data + test.egress.virtio_header, length);
		egress_frame(&test.egress, memory[i] + HEADROOM, length, &header);
	}
	egress_flush(&test.egress);
	for (size_t i = 0; i < count; i++)
		free(memory[i]);
}

/* Put the pieces of a frame together, which are sent in order; whole is what was cut, once the last one is there.
 * docs/protocol.md, 3.7. */
static bool join(const struct item *piece, struct item *whole)
{
	static uint8_t content[1 << 17];
	static size_t filled;
	const uint8_t *data = piece->data;
	size_t size = piece->length - 9, length = read16(data + 3);
	unsigned index = data[2] & 0x3f;

	ENSURE(piece->length > 9 && piece->length <= test.egress.route_limit);
	ENSURE(test.egress.fragmentation == FRAGMENT_IN_PIECES && !(data[2] & 0x40));
	if (index == 0)
		filled = 1;
	ENSURE(filled == 1 + index * size && filled + size <= sizeof(content));
	ENSURE(read16(data + 5) * 65536u + read16(data + 7) == test.number);
	content[0] = ID;
	memcpy(content + filled, data + 9, size);
	filled += size;
	total.pieces++;
	ENSURE((data[2] & 0x80 ? 0x80 : 0) == (filled > length ? 0x80 : 0));
	if (filled <= length)
		return false;
	for (size_t i = 1 + length; i < filled; i++)
		ENSURE(content[i] == 0);
	/* They are small as well as few. */
	ENSURE((size - 1) * (index + 1) < length && index > 0);
	test.number++;
	*whole = (struct item){content, 1 + length, false, 0};
	return true;
}

static void receive(void)
{
	struct encapsulation receiver;

	encapsulation_init(&receiver, ID, remote_mac, local_mac, ELISION_KNOWN,
			   test.egress.encapsulation.frame_limit);
	for (size_t i = 0; i < test.sent.count; i++) {
		const struct item *datagram = &test.sent.items[i];
		struct item joined;
		struct frame frame;
		ENSURE(datagram->data[0] == ID);
		if (datagram->data[1] == 0x44) {
			if (!join(datagram, &joined))
				continue;
			joined.tos = datagram->tos;
			datagram = &joined;
		}
		ENSURE(decapsulate(&receiver, datagram->data, datagram->length, &frame) == FRAME);
		struct item *whole = list_add(&test.received, frame.link, frame.link_length);
		memcpy(keep(frame.rest_length), frame.rest, frame.rest_length);
		whole->length += frame.rest_length;
		ENSURE(datagram->tos == expected_tos(whole));
		test.elided -= frame.elided;
		if (test.egress.encapsulation.elision == ELISION_KNOWN &&
		    test.egress.partial_checksums && frame.elided)
			whole->left = complete_left(whole->data + 14, whole->length - 14);
		total.left += whole->left;
	}
	ENSURE(test.elided == 0);
}

static void ensure_counted(uint64_t elided)
{
	uint64_t octets = 0;

	for (size_t i = 0; i < test.expected.count; i++)
		octets += test.expected.items[i].length;
	ENSURE(test.counters[TX_FRAMES] == test.expected.count);
	ENSURE(test.counters[TX_BYTES] == octets);
	ENSURE(test.counters[TX_ELIDED] == elided);
	ENSURE(test.counters[TX_ERRORS] == test.errors + test.lost);
	ENSURE(test.counters[TX_NOT_IP] == test.not_ip);
	ENSURE(test.counters[TX_FRAGMENTED] == test.fragmented);
	ENSURE(test.counters[TX_PIECED] == test.number);
	ENSURE(test.counters[TX_TOO_BIG_SENT] == test.told);
	ENSURE(test.counters[TX_BACKLOG] == test.shed);
	ENSURE(test.counters[TX_MARKED] == test.relieved);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const enum elision elisions[4] = {ELISION_KNOWN, ELISION_KNOWN, ELISION_NEVER,
						 ELISION_ALWAYS};
	static const size_t frame_limits[8] = {1485, 9014, 65505, 1514, 60, 14, 1298, 4000};
	static const size_t datagram_limits[4] = {1472, 65507, 8972, 100};
	static struct list *const lists[] = {&test.frames, &test.sent, &test.received, &test.expected};
	struct input input = {data, size};
	unsigned settings = take8(&input), more = take8(&input), again = take8(&input);
	struct egress *egress = &test.egress;
	size_t octets = 0;

	forget(lists, sizeof(lists) / sizeof(lists[0]));
	memset(test.counters, 0, sizeof(test.counters));
	test.failure = (enum failure)((more >> 3 & 7) % FAILURES);
	test.calls = test.refused = test.tries = 0;
	test.clock_s = test.refused_at = test.queue_s = 0;
	test.stands = again & 32;
	test.queued = false;
	test.shed = test.relieved = 0;
	test.too_large = SIZE_MAX;
	test.next = 0;
	test.fragmented = test.lost = test.elided = test.errors = test.not_ip = test.number = 0;
	test.told = 0;

	memset(egress, 0, sizeof(*egress));
	egress->io = &fuzz_io;
	encapsulation_init(&egress->encapsulation, ID, local_mac, remote_mac,
			   elisions[settings & 3], frame_limits[more & 7]);
	egress->tap_fd = 1000;
	egress->send_fd = 1001;
	egress->partial_checksums = settings & 4;
	egress->virtio_header = settings & 8 ? 0 : sizeof(struct virtio_header);
	egress->destination_length = settings & 16 ? sizeof(struct sockaddr_in) : 0;
	egress->nowait = test.ready = !(settings & 64);
	egress->segment = !(settings & 128);
	egress->route_limit = datagram_limits[more >> 6];
	egress->fragmentation = again & 1 ? FRAGMENT_IN_PIECES : FRAGMENT_BY_IP;
	egress->packet_too_big = again & 16;
	egress->marking = (struct marking){again & 2 ? 10 : DSCP_INHERIT, !(again & 4), !(again & 8)};
	test.connected = egress->destination_length == 0;
	egress->counters = test.counters;

	while (input.left && test.frames.count < RECORDS && octets < OCTETS) {
		take_record(&input);
		octets += test.frames.items[test.frames.count - 1].length;
	}
	for (size_t i = 0; i < test.frames.count; i++) {
		const struct item *item = &test.frames.items[i];
		static const uint8_t nothing[10];
		size_t header = egress->virtio_header;
		if (item->length < header) {
			test.errors += settings & 32 ? 0 : 1;
			continue;
		}
		const struct todo todo = todo_of(header ? item->data : nothing);
		expect(item->data + header, item->length - header, &todo);
	}
	uint64_t elided = test.elided;

	ENSURE(egress_init(egress));
	if (settings & 32)
		drive_frames();
	else
		drive_batches();
	egress_free(egress);

	receive();
	ensure_same(&test.received, &test.expected);
	ensure_counted(elided);
	total.frames += test.frames.count;
	return 0;
}
