/* SPDX-License-Identifier: MIT */
#include "tools/cli/lost_page.h"

#include "kernels/base/error.h"
#include "tools/cli/stop.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* All that the handler calls is safe in one, so numbers are read and written without stdio. */

struct reader {
    int fd;
    char data[1024];
    ssize_t n, at;
};

static int next_char(struct reader *r)
{
    if (r->at >= r->n) {
        r->n = read(r->fd, r->data, sizeof(r->data));
        r->at = 0;
    }
    return r->n > 0 ? (unsigned char)r->data[r->at++] : -1;
}

/* Reads a line, of which it keeps what has room, without control characters. Returns false at the
 * end. */
static bool read_line(struct reader *r, char *line, size_t room)
{
    size_t n = 0;
    int c;
    while ((c = next_char(r)) >= 0 && c != '\n')
        if (n + 1 < room)
            line[n++] = c < ' ' || c == 0x7f ? '?' : (char)c;
    line[n] = '\0';
    return c >= 0;
}

static const char *read_hex(uintptr_t *out, const char *p)
{
    static const char digits[] = "0123456789abcdef";
    const char *digit;
    for (*out = 0; *p && (digit = strchr(digits, *p)); p++)
        *out = 16 * *out + (uintptr_t)(digit - digits);
    return p;
}

/* Returns the file that is mapped at an address, by proc(5)'s list of mappings: "begin-end", four
 * more fields, and the path. NULL: none is. */
static const char *find_file(uintptr_t at)
{
    static char line[4500];
    struct reader r = {.fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC)};
    while (r.fd >= 0 && read_line(&r, line, sizeof(line))) {
        uintptr_t begin, end;
        const char *p = read_hex(&begin, line);
        if (*p == '-')
            read_hex(&end, p + 1);
        if (*p == '-' && begin <= at && at < end)
            return strchr(line, '/');
    }
    return NULL;
}

static pid_t watching;

static void end_by(int sig)
{
    signal(sig, SIG_DFL);
    raise(sig); /* delivered when the handler returns */
}

/* A child still ends by the signal, by which its parent knows the cause. */
static void on_lost_page(int sig, siginfo_t *from, void *context)
{
    const char *file = from->si_code > 0 ? find_file((uintptr_t)from->si_addr) : NULL;
    (void)context;
    if (!file) {
        end_by(sig);
        return;
    }
    stop_say("\nwkvq: ");
    stop_say(file);
    stop_say(
        ": cut short while it was in use, or its disk is full or fails; put the whole file back");
    stop_say_what_is_kept();
    if (getpid() == watching)
        _exit(err_exit_status(ERR_IO));
    end_by(sig);
}

void lost_page_watch(void)
{
    struct sigaction act = {.sa_sigaction = on_lost_page, .sa_flags = SA_SIGINFO};
    watching = getpid();
    sigfillset(&act.sa_mask);
    sigaction(SIGBUS, &act, NULL);
}
