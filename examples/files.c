/* A server of static files: what is in a folder, and nothing outside of it.
 *
 *     files [-addr A] [-root FOLDER]
 *
 * The kernel keeps every path in the folder (openat2, RESOLVE_BENEATH; Linux 5.6): "..", an absolute path or a symbolic
 * link that leads out of it opens nothing, whatever the path looks like. So this program needs no rules of its own,
 * which could be wrong. The library does the rest: ranges, entity tags, conditions, HEAD. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <httpdown.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli.h"

static int root; /* the folder */

/* Opens what is in the folder under this path. */
static int open_beneath(const char *path) {
    struct open_how how;
    memset(&how, 0, sizeof how);
    /* Non-blocking: a FIFO is not waited for. */
    how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    long fd;
    /* EAGAIN: something was renamed meanwhile, so the kernel does not know whether the path has left the folder. */
    do fd = syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    return (int)fd;
}

/* What a client is told of a file that cannot be opened. */
static void refuse(httpdown_request *request, int error) {
    switch (error) {
    case EACCES:
    case EPERM:
    case EXDEV: /* outside of the folder */ httpdown_reply_text(request, 403, "forbidden\n"); break;
    case EMFILE:
    case ENFILE:
    case ENOMEM: httpdown_reply_text(request, 503, "too busy\n"); break;
    case ENOSYS: httpdown_reply_text(request, 500, "this kernel has no openat2\n"); break;
    default: httpdown_reply_text(request, 404, "not found\n");
    }
}

/* Sends a client from /folder to /folder/, where relative links are right. */
static void redirect(httpdown_request *request) {
    httpdown_bytes path = httpdown_request_path(request);
    char location[4200];
    int len = snprintf(location, sizeof location, "%.*s/", (int)path.len, path.data);
    httpdown_header header = {{"location", 8}, {location, (size_t)len}};
    httpdown_reply(request, 301, &header, 1, NULL, 0);
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_bytes target = httpdown_request_path(request);
    char path[4096 + sizeof "index.html"];
    size_t len;
    /* A path of two slashes would be a host's name in a redirection. */
    if (target.len == 0 || target.data[0] != '/' || (target.len > 1 && target.data[1] == '/') ||
        httpdown_percent_decode(target, path, 4096, &len) != 0 || strlen(path) != len) {
        httpdown_reply_text(request, 404, "not found\n");
        return;
    }
    if (path[len - 1] == '/') strcpy(path + len, "index.html");
    int fd = open_beneath(path + 1);
    struct stat facts;
    if (fd < 0) refuse(request, errno);
    else if (fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode)) {
        httpdown_header headers[] = {
            {{"content-type", 12}, httpdown_content_type(path)},
            {{"x-content-type-options", 22}, {"nosniff", 7}},
        };
        httpdown_reply_open_file(request, fd, headers, 2); /* It has the descriptor now. */
    } else {
        close(fd);
        if (S_ISDIR(facts.st_mode)) redirect(request);
        else refuse(request, ENOENT);
    }
}

int main(int argc, char **argv) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
    };
    const char *folder = ".";
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "root"))) folder = value;
        else if (!cli_tls_flag(argv, &i))
            return fprintf(stderr, "usage: %s [-addr A] [-root FOLDER] [-tls-cert F -tls-key F]\n", argv[0]), 2;
    }
    options.tls = cli_tls_settings();
    root = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) return perror(folder), 1;
    char error[256];
    int status = httpdown_run(&options, NULL, error, sizeof error); /* until TERM or INT */
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
