/* Lowers the MSS that TCP announces. */
#include "mss.h"

#include "packet.h"

enum {
	TCP_SYN = 0x02,
	OPTION_END = 0, /* RFC 9293, section 3.1 */
	OPTION_NOP = 1,
	OPTION_MSS = 2,
	OPTION_MSS_LENGTH = 4,
	OPTION_AO = 29, /* RFC 5925, section 2.2 */
	/* Linux sends no smaller segments (TCP_MIN_MSS), and few others accept it. */
	MSS_MIN = 88,
};

bool find_syn(uint8_t *packet, size_t length, struct syn *found)
{
	size_t at, end;
	uint8_t protocol;

	/* The cheap tests first: this is done for each frame. */
	if (length < IPV4_HEADER)
		return false;
	found->ipv4 = packet[0] >> 4 == 4;
	if (found->ipv4) {
		if (packet[IPV4_PROTOCOL] != PROTOCOL_TCP || !is_ipv4_packet(packet, length) ||
		    get16(packet + IPV4_FRAGMENT) & 0x3fff)
			return false;
		at = (size_t)(packet[0] & 0x0f) * 4;
		end = get16(packet + IPV4_TOTAL_LENGTH);
	} else {
		if (!is_ipv6_packet(packet, length))
			return false;
		at = IPV6_HEADER;
		end = IPV6_HEADER + (size_t)get16(packet + IPV6_PAYLOAD_LENGTH);
		protocol = packet[IPV6_NEXT_HEADER];
		if (protocol != PROTOCOL_TCP)
			at = skip_extensions(packet, at, end, &protocol);
		if (protocol != PROTOCOL_TCP)
			return false;
	}
	if (at + TCP_HEADER > end || !(packet[at + TCP_FLAGS] & TCP_SYN))
		return false;
	size_t own = (size_t)(packet[at + TCP_DATA_OFFSET] >> 4) * 4;
	found->header = packet + at;
	return own >= TCP_HEADER && at + own <= end;
}

uint16_t mss_limit(const struct mss_clamp *self, const struct syn *syn, size_t before)
{
	size_t headers = before + (syn->ipv4 ? IPV4_HEADER : IPV6_HEADER) + TCP_HEADER;
	size_t limit = self->mss;

	if (self->datagram_limit) {
		size_t fits = self->datagram_limit > headers ? self->datagram_limit - headers : 0;
		if (limit == 0 || fits < limit)
			limit = fits < MSS_MIN ? MSS_MIN : fits;
	}
	return limit > UINT16_MAX ? UINT16_MAX : (uint16_t)limit;
}

/* Return how long the option is that begins at option; 0: it is malformed, or the last one. */
static size_t option_length(const uint8_t *option, const uint8_t *end)
{
	if (option[0] == OPTION_NOP)
		return 1;
	if (end - option < 2 || option[1] < 2 || option[1] > end - option)
		return 0;
	if (option[0] == OPTION_MSS && option[1] != OPTION_MSS_LENGTH)
		return 0;
	return option[1];
}

/* RFC 1624, equation 3. Where the value begins at an odd offset its bytes are in two words, in the other
 * order. */
static void follow(uint8_t *header, const uint8_t *value, uint16_t was, uint16_t is)
{
	if ((value - header) % 2) {
		was = (uint16_t)(was << 8 | was >> 8);
		is = (uint16_t)(is << 8 | is >> 8);
	}
	uint32_t sum = (uint16_t)~get16(header + TCP_CHECKSUM) + (uint32_t)(uint16_t)~was + is;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	/* As the kernel writes it (net/core/dev.c, skb_checksum_help): zero has two forms. */
	uint16_t checksum = (uint16_t)~sum;
	put16(header + TCP_CHECKSUM, checksum ? checksum : 0xffff);
}

bool lower_mss(const struct syn *syn, uint16_t limit, bool partial)
{
	uint8_t *header = syn->header;
	uint8_t *end = header + (size_t)(header[TCP_DATA_OFFSET] >> 4) * 4;
	bool exceeds = false;
	size_t length;

	for (uint8_t *option = header + TCP_HEADER; option < end && option[0] != OPTION_END; option += length) {
		length = option_length(option, end);
		if (length == 0 || option[0] == OPTION_AO)
			return false;
		exceeds |= option[0] == OPTION_MSS && get16(option + 2) > limit;
	}
	if (!exceeds)
		return false;
	for (uint8_t *option = header + TCP_HEADER; option < end && option[0] != OPTION_END; option += length) {
		length = option_length(option, end);
		uint16_t was = option[0] == OPTION_MSS ? get16(option + 2) : 0;
		if (was <= limit)
			continue;
		put16(option + 2, limit);
		if (!partial)
			follow(header, option + 2, was, limit);
	}
	return true;
}
