/* The system calls of the data path, behind one table.
 *
 * Both directions reach the kernel through it and in no other way. The fuzzers (tests/fuzz) put in a
 * kernel of their own; an engine that reaches the kernel by other means, such as io_uring, puts in
 * those. Each member behaves as the call of its name does, errno included. */
#ifndef VELA_NATIVE_IO_H
#define VELA_NATIVE_IO_H

#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

struct io {
	/* The TAP. */
	ssize_t (*preadv2)(int fd, const struct iovec *pieces, int count, off_t offset, int flags);
	int (*poll)(struct pollfd *descriptors, nfds_t count, int timeout_ms);
	ssize_t (*writev)(int fd, const struct iovec *pieces, int count);
	/* The sockets. */
	ssize_t (*sendmsg)(int fd, const struct msghdr *message, int flags);
	int (*sendmmsg)(int fd, struct mmsghdr *messages, unsigned int count, int flags);
	int (*recvmmsg)(int fd, struct mmsghdr *messages, unsigned int count, int flags,
			struct timespec *timeout);
	ssize_t (*send)(int fd, const void *data, size_t length, int flags);
	ssize_t (*recv)(int fd, void *data, size_t length, int flags);
	int (*getsockopt)(int fd, int level, int option, void *value, socklen_t *length);
	int (*clock_gettime)(clockid_t clock, struct timespec *now);
	int (*sched_yield)(void);
};

/* The kernel's own. */
extern const struct io kernel_io;

#endif
