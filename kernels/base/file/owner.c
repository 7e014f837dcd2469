/* SPDX-License-Identifier: MIT */
#include "kernels/base/file/owner.h"

#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORMAT "wkvq-owner 1"

struct owner {
    char host[72], boot[48], spaces[96]; /* the namespaces of pids and of time */
    long pid;
    unsigned long long start; /* clock ticks since boot; 0: not known */
};

/* Reads up to n - 1 bytes of a small file; "" if it cannot be read. */
static void read_text(char *out, size_t n, const char *path, int flags)
{
    size_t used = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
    while (fd >= 0 && used < n - 1) {
        const ssize_t done = read(fd, out + used, n - 1 - used);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            break;
        used += (size_t)done;
    }
    out[used] = '\0';
    if (fd >= 0)
        close(fd);
}

/* Removes blanks and unprintable characters, because the values are lines of a mark. */
static void make_word(char *s)
{
    char *to = s;
    for (; *s; s++)
        if (isgraph((unsigned char)*s))
            *to++ = *s;
    *to = '\0';
}

/* Reads the state letter and the start time of a process. Returns false if /proc does not
 * have them. */
static bool process_stat(long pid, char *letter, unsigned long long *start)
{
    char path[48], text[1024];
    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    read_text(text, sizeof(text), path, 0);
    const char *p = strrchr(text, ')'); /* the name before it may contain any character */
    return p && sscanf(p + 1,
                       " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d "
                       "%*d %*d %*d %llu",
                       letter, start) == 2;
}

/* Appends the name of a namespace of this process; nothing where the kernel has no such one. */
static void add_space(struct owner *o, const char *path)
{
    const size_t used = strlen(o->spaces);
    const ssize_t n = readlink(path, o->spaces + used, sizeof(o->spaces) - used - 1);
    o->spaces[used + (size_t)(n > 0 ? n : 0)] = '\0';
}

/* Is /proc that of this process's own PID namespace? Elsewhere its numbers are those of other
 * processes. */
static bool proc_is_ours(void)
{
    char self[32], pid[32];
    const ssize_t n = readlink("/proc/self", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    snprintf(pid, sizeof(pid), "%ld", (long)getpid());
    return !strcmp(self, pid);
}

/* The start time of a process, as /proc has it, depends on the reader's namespace of time. */
static void find_self(struct owner *o)
{
    char letter;
    *o = (struct owner){.pid = (long)getpid()};
    if (gethostname(o->host, sizeof(o->host) - 1))
        o->host[0] = '\0';
    read_text(o->boot, sizeof(o->boot), "/proc/sys/kernel/random/boot_id", 0);
    add_space(o, "/proc/self/ns/pid");
    add_space(o, "/proc/self/ns/time");
    make_word(o->host);
    make_word(o->boot);
    make_word(o->spaces);
    if (!proc_is_ours() || !process_stat(o->pid, &letter, &o->start))
        o->start = 0;
}

static bool same_place(const struct owner *a, const struct owner *b)
{
    return *a->boot && !strcmp(a->host, b->host) && !strcmp(a->boot, b->boot) &&
           !strcmp(a->spaces, b->spaces);
}

/* Returns the state of a process of this host. A process that has ended but still waits for
 * its parent is dead. */
static enum owner_state look_at(long pid, unsigned long long start)
{
    char letter = '?';
    unsigned long long now = 0;
    if (kill((pid_t)pid, 0) && errno == ESRCH)
        return OWNER_DEAD;
    if (!proc_is_ours() || !process_stat(pid, &letter, &now))
        return OWNER_ALIVE;
    if (letter == 'Z' || letter == 'X' || (start && now && start != now))
        return OWNER_DEAD;
    return OWNER_ALIVE;
}

/* --- tags --------------------------------------------------------------------------- */

static void put_tag(char out[OWNER_TAG_MAX], const struct owner *place, long pid,
                    unsigned long long start)
{
    char text[320];
    const int n = snprintf(text, sizeof(text), "%s %s %s %s %ld %llx", FORMAT, place->host,
                           place->boot, place->spaces, pid, start);
    snprintf(out, OWNER_TAG_MAX, "%ld-%llx-%08" PRIx32, pid, start,
             bytes_crc32(0, text, (size_t)n));
}

void owner_tag(char out[OWNER_TAG_MAX])
{
    struct owner self;
    find_self(&self);
    put_tag(out, &self, self.pid, self.start);
}

enum owner_state owner_of_tag(const char *tag)
{
    char again[OWNER_TAG_MAX];
    long pid;
    unsigned long long start;
    uint32_t crc;
    struct owner self;
    if (sscanf(tag, "%ld-%llx-%" SCNx32, &pid, &start, &crc) != 3 || pid <= 0)
        return OWNER_UNKNOWN;
    snprintf(again, sizeof(again), "%ld-%llx-%08" PRIx32, pid, start, crc);
    if (strcmp(again, tag))
        return OWNER_UNKNOWN;
    find_self(&self);
    put_tag(again, &self, pid, start);
    return *self.boot && !strcmp(again, tag) ? look_at(pid, start) : OWNER_ELSEWHERE;
}

/* --- marks -------------------------------------------------------------------------- */

static bool write_fully(int fd, const char *text)
{
    for (size_t n = strlen(text), at = 0; at < n;) {
        const ssize_t done = write(fd, text + at, n - at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        at += (size_t)done;
    }
    return true;
}

static enum err write_new(bool *taken, const char *path, const char *text)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    *taken = fd < 0 && errno == EEXIST;
    if (*taken)
        return OK;
    if (fd < 0)
        return file_write_error(path, errno);
    int why = write_fully(fd, text) ? 0 : errno;
    if (close(fd) && !why)
        why = errno;
    if (!why)
        return OK;
    unlink(path);
    return file_write_error(path, why);
}

/* Writes a complete file under another name and links it: like O_EXCL, link() refuses an
 * existing name, and no reader sees half a mark. */
static enum err link_new(bool *taken, const char *path, const char *text)
{
    enum err err = OK;
    char *tmp = NULL, tag[OWNER_TAG_MAX];
    owner_tag(tag);
    TRY(mem_alloc(&tmp, strlen(path) + sizeof(tag) + 8, 1));
    sprintf(tmp, "%s.tmp.%s", path, tag);
    TRY_OUT(write_new(taken, tmp, text));
    if (!*taken && link(tmp, path)) {
        *taken = errno == EEXIST;
        if (!*taken) {
            unlink(tmp);
            err = write_new(taken, path, text);
            goto out;
        }
    }
    unlink(tmp);
out:
    mem_free(tmp);
    return err;
}

static void put_mark(char text[OWNER_TEXT_MAX])
{
    struct owner o;
    find_self(&o);
    snprintf(text, OWNER_TEXT_MAX,
             FORMAT "\nhost %s\nboot %s\npidns %s\npid %ld\nstart %llu\n", o.host, o.boot,
             o.spaces, o.pid, o.start);
}

enum err owner_mark(bool *taken, const char *path)
{
    char text[OWNER_TEXT_MAX];
    put_mark(text);
    return link_new(taken, path, text);
}

bool owner_mark_is_mine(const char *path)
{
    char mine[OWNER_TEXT_MAX], text[OWNER_TEXT_MAX];
    put_mark(mine);
    read_text(text, sizeof(text), path, O_NOFOLLOW);
    return !strcmp(mine, text);
}

static bool parse_mark(struct owner *o, const char *text)
{
    char again[OWNER_TEXT_MAX];
    *o = (struct owner){0};
    /* Values may be empty, so each line is parsed separately. */
    const char *p = text;
    char *const word[3] = {o->host, o->boot, o->spaces};
    static const size_t room[3] = {sizeof(o->host), sizeof(o->boot), sizeof(o->spaces)};
    static const char *const head[3] = {FORMAT "\nhost ", "\nboot ", "\npidns "};
    for (int i = 0; i < 3; i++) {
        if (strncmp(p, head[i], strlen(head[i])))
            return false;
        p += strlen(head[i]);
        const size_t n = strcspn(p, "\n");
        if (n >= room[i])
            return false;
        memcpy(word[i], p, n);
        p += n;
    }
    if (sscanf(p, "\npid %ld\nstart %llu", &o->pid, &o->start) != 2 || o->pid <= 0)
        return false;
    snprintf(again, sizeof(again), "\npid %ld\nstart %llu\n", o->pid, o->start);
    return !strcmp(again, p);
}

enum owner_state owner_of_mark(const char *path, char about[OWNER_TEXT_MAX])
{
    struct stat st;
    struct owner o, self;
    char text[OWNER_TEXT_MAX];
    if (about)
        snprintf(about, OWNER_TEXT_MAX, "an unknown process");
    if (lstat(path, &st) || !S_ISREG(st.st_mode))
        return OWNER_UNKNOWN;
    read_text(text, sizeof(text), path, O_NOFOLLOW);
    if (!parse_mark(&o, text))
        return OWNER_UNKNOWN;
    find_self(&self);
    if (about)
        snprintf(about, OWNER_TEXT_MAX, "process %ld on %s", o.pid,
                 *o.host ? o.host : "an unnamed host");
    return same_place(&self, &o) ? look_at(o.pid, o.start) : OWNER_ELSEWHERE;
}
