/* The limit of what a server can be: a loop around epoll that looks for the ends of heads, and sends a fixed answer for
 * each, all of a read's in one write. It knows no methods, no bodies, no errors. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, World!"
#define MOST 64 /* answers in a write */
#define SPACE 8192

/* What a connection has sent that is no whole head. There is none, mostly, and then no memory for it. */
struct connection {
    int fd;
    size_t length;
    char *kept;
};

static char answers[MOST * (sizeof ANSWER - 1)];

static void close_connection(struct connection *connection) {
    close(connection->fd);
    free(connection->kept);
    free(connection);
}

/* The buffer of an answer is empty, and it is small: the kernel takes all or there is an error. */
static bool answer(int fd, size_t count) {
    size_t length = count * (sizeof ANSWER - 1);
    return send(fd, answers, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* False when the connection is to be closed. */
static bool serve(struct connection *connection) {
    static char buffer[SPACE];
    size_t length = connection->length;
    if (length > 0) memcpy(buffer, connection->kept, length);
    ssize_t count = recv(connection->fd, buffer + length, sizeof buffer - length, 0);
    if (count < 0) return errno == EAGAIN;
    if (count == 0) return false;
    length += (size_t)count;
    char *head = buffer, *end;
    size_t heads = 0;
    bool closes = false;
    while (!closes && (end = memmem(head, length, "\r\n\r\n", 4)) != NULL) {
        end += 4;
        closes = memmem(head, (size_t)(end - head), "Connection: close", 17) != NULL;
        length -= (size_t)(end - head);
        head = end;
        if (++heads == MOST) {
            if (!answer(connection->fd, heads)) return false;
            heads = 0;
        }
    }
    if (heads > 0 && !answer(connection->fd, heads)) return false;
    if (closes || length == sizeof buffer) return false;
    connection->length = length;
    if (length > 0) {
        if (connection->kept == NULL && (connection->kept = malloc(SPACE)) == NULL) return false;
        memcpy(connection->kept, head, length);
    }
    return true;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: epoll PORT\n"), 2;
    for (size_t i = 0; i < MOST; i++) memcpy(answers + i * (sizeof ANSWER - 1), ANSWER, sizeof ANSWER - 1);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&addr, sizeof addr) != 0) fail("bind");
    if (listen(listener, 1024) != 0) fail("listen");
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) != 0) fail("epoll");
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll, events, 256, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection != NULL) {
                if (!serve(connection)) close_connection(connection);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connection = calloc(1, sizeof *connection);
                if (connection == NULL) fail("calloc");
                connection->fd = fd;
                event.data.ptr = connection;
                if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
            }
        }
    }
}
