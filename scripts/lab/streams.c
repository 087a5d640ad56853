/*
 * Fills many TCP connections at once and counts what arrives on each: `streams WARM_UP SECONDS
 * SENDER:SINK...`. The pairs are inherited descriptors of connected sockets, which may belong to two
 * network namespaces. One thread sends, one receives, each serving whatever is ready in turn.
 *
 * Prints one line of JSON: seconds measured, and bytes received by each pair in them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_PAIRS = 255,
    CHUNK = 128 * 1024, /* a write or read at most, as iperf3's */
    WAIT_MS = 20,
};
#define NS 1000000000LL

static int senders[MAX_PAIRS], sinks[MAX_PAIRS], pairs;
static _Atomic uint64_t received[MAX_PAIRS];
static atomic_bool ending;
static atomic_int error;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

static void sleep_until(int64_t at)
{
    struct timespec until = {.tv_sec = at / NS, .tv_nsec = at % NS};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

/* Serve descriptors until the end; a write with nobody left to read it counts as an error. */
static void *serve(const int *fds, uint32_t events, unsigned char *buffer)
{
    struct epoll_event ready[MAX_PAIRS];
    const int poll = epoll_create1(EPOLL_CLOEXEC);
    int failed = poll < 0 ? errno : 0;

    for (int i = 0; i < pairs && !failed; i++) {
        struct epoll_event event = {.events = events, .data.u32 = (uint32_t)i};
        if (fcntl(fds[i], F_SETFL, O_NONBLOCK) || epoll_ctl(poll, EPOLL_CTL_ADD, fds[i], &event))
            failed = errno;
    }
    while (!failed && !atomic_load(&ending)) {
        const int count = epoll_wait(poll, ready, pairs, WAIT_MS);
        if (count < 0 && errno != EINTR)
            failed = errno;
        for (int i = 0; i < count && !failed; i++) {
            const uint32_t pair = ready[i].data.u32;
            const ssize_t done = events == EPOLLIN ? recv(fds[pair], buffer, CHUNK, 0)
                                                   : send(fds[pair], buffer, CHUNK, MSG_NOSIGNAL);
            if (done < 0 && errno != EAGAIN && errno != EINTR)
                failed = errno;
            else if (done == 0)
                failed = ECONNRESET;
            else if (done > 0 && events == EPOLLIN)
                atomic_fetch_add_explicit(&received[pair], (uint64_t)done, memory_order_relaxed);
        }
    }
    if (failed) {
        atomic_store(&error, failed);
        atomic_store(&ending, true);
    }
    if (poll >= 0)
        close(poll);
    return NULL;
}

static void *send_all(void *argument)
{
    static unsigned char buffer[CHUNK];
    (void)argument;
    return serve(senders, EPOLLOUT, buffer);
}

static void *receive_all(void *argument)
{
    static unsigned char buffer[CHUNK];
    (void)argument;
    return serve(sinks, EPOLLIN, buffer);
}

int main(int argc, char **argv)
{
    pthread_t sending, receiving;
    uint64_t before[MAX_PAIRS];

    if (argc < 4 || argc - 3 > MAX_PAIRS) {
        fprintf(stderr, "usage: streams WARM_UP SECONDS SENDER_FD:SINK_FD...\n");
        return 2;
    }
    const double warm_up = atof(argv[1]);
    const double seconds = atof(argv[2]);
    for (int i = 3; i < argc; i++, pairs++) {
        if (sscanf(argv[i], "%d:%d", &senders[pairs], &sinks[pairs]) != 2) {
            fprintf(stderr, "streams: %s: not SENDER_FD:SINK_FD\n", argv[i]);
            return 2;
        }
    }
    if ((errno = pthread_create(&receiving, NULL, receive_all, NULL)) ||
        (errno = pthread_create(&sending, NULL, send_all, NULL))) {
        fprintf(stderr, "streams: pthread_create: %s\n", strerror(errno));
        return 1;
    }
    sleep_until(now_ns() + (int64_t)(warm_up * NS));
    const int64_t start = now_ns();
    for (int i = 0; i < pairs; i++)
        before[i] = atomic_load(&received[i]);
    sleep_until(start + (int64_t)(seconds * NS));
    const int64_t end = now_ns();
    for (int i = 0; i < pairs; i++)
        before[i] = atomic_load(&received[i]) - before[i];
    atomic_store(&ending, true);
    pthread_join(sending, NULL);
    pthread_join(receiving, NULL);
    if (atomic_load(&error)) {
        fprintf(stderr, "streams: %s\n", strerror(atomic_load(&error)));
        return 1;
    }

    printf("{\"seconds\": %.6f, \"received_bytes\": [", (double)(end - start) / NS);
    for (int i = 0; i < pairs; i++)
        printf("%s%" PRIu64, i ? ", " : "", before[i]);
    printf("]}\n");
    return 0;
}
