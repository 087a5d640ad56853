/* The kernel's own system calls. */
#define _GNU_SOURCE
#include "io.h"

#include <sched.h>

const struct io kernel_io = {
	.preadv2 = preadv2,
	.poll = poll,
	.writev = writev,
	.sendmsg = sendmsg,
	.sendmmsg = sendmmsg,
	.recvmmsg = recvmmsg,
	.send = send,
	.recv = recv,
	.getsockopt = getsockopt,
	.clock_gettime = clock_gettime,
	.sched_yield = sched_yield,
};
