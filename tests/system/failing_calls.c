/* Preloaded into velad: makes a worker's system calls fail while a file of their name is in the
 * folder that FAILING_CALLS names. Workers are told from the supervisor by their user. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(const char *what)
{
	char path[PATH_MAX];
	const char *folder = getenv("FAILING_CALLS");

	if (!folder)
		return 0;
	snprintf(path, sizeof(path), "%s/%s", folder, what);
	return access(path, F_OK) == 0;
}

static int worker_fails(const char *what)
{
	return geteuid() != 0 && fails(what);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* As by Linux before 6.4, on a TAP: the first frame of a batch is read, and none without waiting. */
#define PREADV2(name)                                                                              \
	ssize_t name(int fd, const struct iovec *pieces, int count, off_t offset, int flags)       \
	{                                                                                          \
		if (flags & RWF_NOWAIT && worker_fails("preadv2")) {                               \
			errno = EOPNOTSUPP;                                                        \
			return -1;                                                                 \
		}                                                                                  \
		return REAL(name)(fd, pieces, count, offset, flags);                               \
	}

PREADV2(preadv2)
PREADV2(preadv64v2)

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	if (worker_fails("recvmsg")) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return REAL(recvmsg)(fd, message, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *limit)
{
	if (worker_fails("recvmsg")) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return REAL(recvmmsg)(fd, messages, count, flags, limit);
}

int setresuid(uid_t real, uid_t effective, uid_t saved)
{
	if (fails("setresuid")) {
		errno = EAGAIN; /* the user has too many processes */
		return -1;
	}
	return REAL(setresuid)(real, effective, saved);
}
