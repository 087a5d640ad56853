/* Preloaded into velad: makes a worker's system calls fail while the word of the file that
 * FAILING_CALLS names says so, bit by bit. The file is mapped when velad starts, as a worker may open
 * none. Workers are told from the supervisor by having become another user. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* As tests/system/test_worker_failure.py numbers them. */
enum { PREADV2_BIT = 1, RECVMSG_BIT = 2, SETRESUID_BIT = 4 };

static volatile const unsigned char *failing;
static int is_worker;

__attribute__((constructor)) static void map(void)
{
	const char *path = getenv("FAILING_CALLS");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	void *mapped = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
	if (mapped != MAP_FAILED)
		failing = mapped;
	close(fd);
}

static int fails(int what)
{
	return failing && *failing & what;
}

static int worker_fails(int what)
{
	return is_worker && fails(what);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* As by Linux before 6.4, on a TAP: the first frame of a batch is read, and none without waiting. */
#define PREADV2(name)                                                                              \
	ssize_t name(int fd, const struct iovec *pieces, int count, off_t offset, int flags)       \
	{                                                                                          \
		if (flags & RWF_NOWAIT && worker_fails(PREADV2_BIT)) {                               \
			errno = EOPNOTSUPP;                                                        \
			return -1;                                                                 \
		}                                                                                  \
		return REAL(name)(fd, pieces, count, offset, flags);                               \
	}

PREADV2(preadv2)
PREADV2(preadv64v2)

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	if (worker_fails(RECVMSG_BIT)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return REAL(recvmsg)(fd, message, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *limit)
{
	if (worker_fails(RECVMSG_BIT)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return REAL(recvmmsg)(fd, messages, count, flags, limit);
}

int setresuid(uid_t real, uid_t effective, uid_t saved)
{
	if (fails(SETRESUID_BIT)) {
		errno = EAGAIN; /* the user has too many processes */
		return -1;
	}
	is_worker = effective != 0;
	return REAL(setresuid)(real, effective, saved);
}
