/* The kernel's own system calls. */
#define _GNU_SOURCE
#include "io.h"

const struct io kernel_io = {
	.preadv2 = preadv2,
	.poll = poll,
	.writev = writev,
	.sendmsg = sendmsg,
	.sendmmsg = sendmmsg,
	.recvmmsg = recvmmsg,
	.send = send,
	.getsockopt = getsockopt,
	.clock_gettime = clock_gettime,
};
