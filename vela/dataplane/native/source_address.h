/* Which address of this machine datagrams leave from, where their socket is bound to all. */
#ifndef VELA_NATIVE_SOURCE_ADDRESS_H
#define VELA_NATIVE_SOURCE_ADDRESS_H

#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

enum {
	SOURCE_ADDRESS_MAX = 20, /* bytes: struct in6_pktinfo; in_pktinfo has 12 */
};

/* A control message as sendmsg takes it. */
struct source_address {
	size_t length; /* with its header and padding; 0: the kernel's choice, or the socket is bound */
	_Alignas(struct cmsghdr) char space[CMSG_SPACE(SOURCE_ADDRESS_MAX)];
};

#endif
