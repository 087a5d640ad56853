/*
 * Sends datagrams at a rate on one socket and counts them on another: `blast SENDER SINK BYTES RATE
 * SECONDS`. Both sockets are inherited, so they may belong to two network namespaces. Every datagram
 * is handed to the kernel by itself (no UDP_SEGMENT): what enters a tunnel is single frames.
 *
 * Prints one line of JSON. An error of its own: a line on stderr, status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 64,
    MAX_BYTES = 9000,
    TICK_NS = 100000, /* between wake-ups of the sender, if more than one datagram falls due */
    QUIET_MS = 50,    /* without an arrival, after the last was sent: what is missing is lost */
};
#define NS 1000000000LL

/* At the start of each datagram: which trial it belongs to, and its place. */
struct mark {
    uint64_t token;
    uint64_t number;
};

struct sink {
    int fd;
    uint64_t token;
    atomic_bool sent_all;
    _Atomic uint64_t sent;
    uint64_t received;
    uint64_t reordered;
    int64_t last_ns;
    double cpu_s;
    int error;
};

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

static double thread_cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void *count(void *argument)
{
    struct sink *sink = argument;
    struct mark marks[BATCH];
    struct iovec vectors[BATCH];
    struct mmsghdr messages[BATCH];
    uint64_t next = 0;

    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){.iov_base = &marks[i], .iov_len = sizeof marks[i]};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        int got = recvmmsg(sink->fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (got < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) {
                if (atomic_load(&sink->sent_all))
                    break;
                continue;
            }
            if (errno == EINTR)
                continue;
            sink->error = errno;
            break;
        }
        for (int i = 0; i < got; i++) {
            if (messages[i].msg_len < sizeof marks[i] || marks[i].token != sink->token)
                continue;
            if (marks[i].number < next)
                sink->reordered++;
            else
                next = marks[i].number + 1;
            sink->received++;
        }
        sink->last_ns = now_ns();
        if (atomic_load(&sink->sent_all) && sink->received >= atomic_load(&sink->sent))
            break;
    }
    sink->cpu_s = thread_cpu_s();
    return NULL;
}

/* Send for duration_ns; return how many, or -1 with errno. */
static int64_t send_all(int fd, uint64_t token, size_t bytes, double rate, int64_t start_ns,
                        int64_t duration_ns)
{
    static unsigned char payloads[BATCH][MAX_BYTES];
    struct iovec vectors[BATCH];
    struct mmsghdr messages[BATCH];
    struct mark mark = {.token = token};
    const double per_tick = rate * TICK_NS / NS;
    const double chunk = per_tick > 1 ? per_tick : 1;
    int64_t sent = 0;
    double forgiven = 0;

    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){.iov_base = payloads[i], .iov_len = bytes};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        int64_t elapsed = now_ns() - start_ns;
        if (elapsed >= duration_ns)
            return sent;
        double due = rate * (double)elapsed / NS - forgiven - (double)sent;
        if (due < chunk) {
            int64_t at = start_ns + (int64_t)(((double)sent + forgiven + chunk) / rate * NS) + 1;
            struct timespec until = {.tv_sec = at / NS, .tv_nsec = at % NS};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
            continue;
        }
        /* Arrears, after this thread had to wait for a CPU, would overflow a queue as a burst. */
        if (due > chunk + BATCH) {
            forgiven += due - (chunk + BATCH);
            due = chunk + BATCH;
        }
        unsigned int now = due < BATCH ? (unsigned int)due : BATCH;
        for (unsigned int i = 0; i < now; i++) {
            mark.number = (uint64_t)sent + i;
            memcpy(payloads[i], &mark, sizeof mark);
        }
        int done = sendmmsg(fd, messages, now, 0);
        if (done < 0) {
            if (errno == EINTR)
                continue;
            /* Dropped on the way out: lost like any other. */
            if (errno != ENOBUFS)
                return -1;
            done = 1;
        }
        sent += done;
    }
}

static int fail(const char *what)
{
    fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: blast SENDER_FD SINK_FD BYTES RATE SECONDS\n");
        return 2;
    }
    const int sender = atoi(argv[1]);
    const size_t bytes = strtoul(argv[3], NULL, 10);
    const double rate = atof(argv[4]);
    const double seconds = atof(argv[5]);
    if (bytes < sizeof(struct mark) || bytes > MAX_BYTES || rate <= 0 || seconds <= 0) {
        fprintf(stderr, "blast: BYTES %zu to %d, RATE and SECONDS above 0\n", sizeof(struct mark),
                MAX_BYTES);
        return 2;
    }

    struct sink sink = {.fd = atoi(argv[2])};
    struct timeval quiet = {.tv_usec = QUIET_MS * 1000};
    if (setsockopt(sink.fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof quiet))
        return fail("SO_RCVTIMEO");
    sink.token = (uint64_t)now_ns() ^ ((uint64_t)getpid() << 48);
    prctl(PR_SET_TIMERSLACK, 1UL);

    pthread_t thread;
    errno = pthread_create(&thread, NULL, count, &sink);
    if (errno)
        return fail("pthread_create");
    const double cpu_before = thread_cpu_s();
    const int64_t start = now_ns();
    const int64_t sent = send_all(sender, sink.token, bytes, rate, start, (int64_t)(seconds * NS));
    if (sent < 0)
        return fail("sendmmsg");
    const int64_t end = now_ns();
    const double sender_cpu = thread_cpu_s() - cpu_before;
    atomic_store(&sink.sent, (uint64_t)sent);
    atomic_store(&sink.sent_all, true);
    pthread_join(thread, NULL);
    if (sink.error) {
        errno = sink.error;
        return fail("recvmmsg");
    }

    const int64_t last = sink.last_ns > end ? sink.last_ns : end;
    printf("{\"sent\": %" PRId64 ", \"received\": %" PRIu64 ", \"reordered\": %" PRIu64
           ", \"sending_s\": %.6f, \"seconds\": %.6f, \"sender_cpu_s\": %.6f, \"sink_cpu_s\": %.6f}\n",
           sent, sink.received, sink.reordered, (double)(end - start) / NS,
           (double)(last - start) / NS, sender_cpu, sink.cpu_s);
    return 0;
}
