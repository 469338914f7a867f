/* The load and the yardstick of benchmarks/media.py.
 *
 *   rtp_load send FIRST PACKETS PAYLOAD
 *                                   ports on stdin, a line each: one RTP packet to each every 20 ms,
 *                                   spread over the 20 ms, numbered from FIRST; prints
 *                                   "sent COUNT CPU_US LATE_MS"
 *   rtp_load sweep STREAMS FOLDER   binds STREAMS sockets and prints their ports; every 200 ms takes
 *                                   what waits by recvmmsg with kernel time stamps and appends it to
 *                                   a file a stream; ends at the end of stdin, and prints
 *                                   "received COUNT CPU_US DROPS"
 *
 * "sweep" is what receiving and storing costs where nothing else is done with a packet.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_STREAMS 20000
#define SLOTS 4096
#define STRIDE 2064
#define HEAD 16
#define PARTS 10 /* of the 20 ms */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleep_until(int64_t at) {
    struct timespec t = {at / 1000000000, at % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

static long cpu_us(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000L + use.ru_utime.tv_usec +
           use.ru_stime.tv_usec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int send_all(int start, int packets, int payload) {
    static struct sockaddr_in to[MOST_STREAMS];
    static struct mmsghdr messages[MOST_STREAMS];
    static struct iovec vectors[MOST_STREAMS];
    int streams = 0, port, one = socket(AF_INET, SOCK_DGRAM, 0), size = 12 + payload;
    if (one < 0) fail("socket");
    while (streams < MOST_STREAMS && scanf("%d", &port) == 1) {
        to[streams].sin_family = AF_INET;
        to[streams].sin_port = htons(port);
        to[streams].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        streams++;
    }
    uint8_t *data = calloc(streams, size);
    for (int i = 0; i < streams; i++) {
        vectors[i] = (struct iovec){data + (size_t)i * size, size};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &to[i], .msg_namelen = sizeof to[i],
                                              .msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    int64_t begun = now_ns(), late = 0;
    long sent = 0;
    for (int n = start; n < start + packets; n++) {
        for (int part = 0; part < PARTS; part++) {
            int first = (int64_t)streams * part / PARTS, last = (int64_t)streams * (part + 1) / PARTS;
            for (int i = first; i < last; i++) {
                uint8_t *p = data + (size_t)i * size;
                uint32_t stamp = htonl(160 * n), ssrc = htonl(ntohs(to[i].sin_port));
                uint16_t sequence = htons(n);
                p[0] = 0x80;
                memcpy(p + 2, &sequence, 2);
                memcpy(p + 4, &stamp, 4);
                memcpy(p + 8, &ssrc, 4);
                memset(p + 12, (n + i) & 0xff, payload);
            }
            int64_t due = begun + ((int64_t)(n - start) * PARTS + part) * (20000000 / PARTS);
            if (now_ns() - due > late) late = now_ns() - due;
            sleep_until(due);
            for (int at = first; at < last;) {
                int done = sendmmsg(one, messages + at, last - at, 0);
                if (done < 0) {
                    if (errno == EINTR || errno == ENOBUFS || errno == ECONNREFUSED) continue;
                    fail("sendmmsg");
                }
                at += done;
                sent += done;
            }
        }
    }
    printf("sent %ld %ld %ld\n", sent, cpu_us(), (long)(late / 1000000));
    return 0;
}

static int sweep(int streams, const char *folder) {
    static int sockets[MOST_STREAMS], files[MOST_STREAMS];
    static uint8_t arena[SLOTS * STRIDE], control[SLOTS][64];
    static struct mmsghdr messages[SLOTS];
    static struct iovec vectors[SLOTS], pieces[SLOTS];
    static uint32_t dropped[MOST_STREAMS];
    char path[4096];
    for (int i = 0; i < streams; i++) {
        int yes = 1, room = 1 << 20;
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof here;
        sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(sockets[i], SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        setsockopt(sockets[i], SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes);
        setsockopt(sockets[i], SOL_SOCKET, SO_RXQ_OVFL, &yes, sizeof yes);
        if (bind(sockets[i], (struct sockaddr *)&here, sizeof here)) fail("bind");
        getsockname(sockets[i], (struct sockaddr *)&here, &length);
        snprintf(path, sizeof path, "%s/%d.spool", folder, i);
        files[i] = open(path, O_WRONLY | O_CREAT | O_APPEND, 0640);
        if (files[i] < 0) fail(path);
        printf("%d\n", ntohs(here.sin_port));
    }
    printf("ready\n");
    fflush(stdout);
    for (int i = 0; i < SLOTS; i++) {
        vectors[i] = (struct iovec){arena + i * STRIDE + HEAD, STRIDE - HEAD};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1,
                                              .msg_control = control[i]};
    }
    long received = 0, before = cpu_us();
    int64_t due = now_ns();
    int over = 0;
    while (!over) {
        due += 200000000;
        struct pollfd in = {0, POLLIN, 0};
        int64_t wait = (due - now_ns()) / 1000000;
        if (poll(&in, 1, wait > 0 ? wait : 0) > 0) over = 1;
        if (!over) sleep_until(due);
        for (int i = 0; i < streams; i++) {
            for (;;) {
                for (int k = 0; k < 64; k++) messages[k].msg_hdr.msg_controllen = 64;
                int count = recvmmsg(sockets[i], messages, 64, MSG_DONTWAIT, NULL);
                if (count <= 0) break;
                for (int k = 0; k < count; k++) {
                    struct msghdr *one = &messages[k].msg_hdr;
                    int64_t at = 0;
                    for (struct cmsghdr *c = CMSG_FIRSTHDR(one); c; c = CMSG_NXTHDR(one, c)) {
                        if (c->cmsg_type == SCM_TIMESTAMPNS) {
                            struct timespec t;
                            memcpy(&t, CMSG_DATA(c), sizeof t);
                            at = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
                        } else if (c->cmsg_type == SO_RXQ_OVFL) {
                            memcpy(&dropped[i], CMSG_DATA(c), 4);
                        }
                    }
                    uint8_t *head = arena + k * STRIDE;
                    uint32_t length = messages[k].msg_len;
                    memcpy(head, &length, 4);
                    memset(head + 4, 0, 4);
                    memcpy(head + 8, &at, 8);
                    pieces[k] = (struct iovec){head, HEAD + length};
                }
                if (writev(files[i], pieces, count) < 0) fail("writev");
                received += count;
                if (count < 64) break;
            }
        }
    }
    long drops = 0;
    for (int i = 0; i < streams; i++) drops += dropped[i];
    printf("received %ld %ld %ld\n", received, cpu_us() - before, drops);
    return 0;
}

int main(int count, char **words) {
    if (count == 5 && !strcmp(words[1], "send"))
        return send_all(atoi(words[2]), atoi(words[3]), atoi(words[4]));
    if (count == 4 && !strcmp(words[1], "sweep")) return sweep(atoi(words[2]), words[3]);
    fprintf(stderr, "usage: rtp_load send FIRST PACKETS PAYLOAD | sweep STREAMS FOLDER\n");
    return 2;
}
