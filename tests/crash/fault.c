/* SPDX-License-Identifier: MIT
 *
 * Faults below the file layer and the allocator: the linker's --wrap sends the program's
 * own calls here (see meson.build), and the environment says which one misbehaves.
 *
 *   FAULT=KIND:N:ACTION  the Nth call (from 1) of KIND; N+ for that one and all later ones
 *   FAULT_COUNT=FILE     at the end, one line "KIND calls" a kind
 *   FAULT_SERVER=1       no run of its own: serve()
 *
 * KIND: a name of kind_name, or "file" for every call that changes a file or its name.
 * ACTION: an error (ENOSPC, EIO, EINTR, ENOMEM, EMFILE, EACCES, ENOSYS, ENOLCK,
 * EOPNOTSUPP), "short" (write half), "kill" (SIGKILL before the call), "half" (SIGKILL
 * after half of a write; as kill for other calls), "stop" (SIGINT before the call, which is then
 * made). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum kind {
    OPEN,
    WRITE,
    FSYNC,
    CLOSE,
    RENAME,
    RESERVE,
    MMAP,
    NAMES,
    OPENDIR,
    LOCK,
    THREAD,
    ALLOC,
    FILE_ANY,
    KINDS
};
static const char *const kind_name[KINDS] = {
    "open",  "write",   "fsync", "close",  "rename", "reserve", "mmap",
    "names", "opendir", "lock",  "thread", "alloc",  "file"};

static atomic_long calls[KINDS];
static enum kind target = KINDS;
static long target_n, target_end;
static int action_errno;
static bool action_kill, action_half, action_short, action_stop;
static bool started; /* main is running */

struct action_name {
    const char *name;
    int number;
};
static const struct action_name actions[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EINTR", EINTR},
    {"ENOMEM", ENOMEM}, {"EMFILE", EMFILE}, {"EACCES", EACCES},
    {"ENOSYS", ENOSYS}, {"ENOLCK", ENOLCK}, {"EOPNOTSUPP", EOPNOTSUPP}};

static void bad_setting(const char *text)
{
    fprintf(stderr, "FAULT=%s: not KIND:N:ACTION\n", text);
    _exit(120);
}

static void parse(const char *text)
{
    char kind[16], plus[2] = "", action[16];
    if (sscanf(text, "%15[a-z]:%ld%1[+]:%15s", kind, &target_n, plus, action) != 4 &&
        sscanf(text, "%15[a-z]:%ld:%15s", kind, &target_n, action) != 3)
        bad_setting(text);
    target_end = *plus ? __LONG_MAX__ : target_n;
    for (int i = 0; i < KINDS; i++)
        if (!strcmp(kind, kind_name[i]))
            target = (enum kind)i;
    action_half = !strcmp(action, "half");
    action_kill = action_half || !strcmp(action, "kill");
    action_short = !strcmp(action, "short");
    action_stop = !strcmp(action, "stop");
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++)
        if (!strcmp(action, actions[i].name))
            action_errno = actions[i].number;
    if (target == KINDS || (!action_kill && !action_short && !action_stop && !action_errno))
        bad_setting(text);
}

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

/* Not a constructor: calls during the start of libraries (CUDA's allocates) are neither
 * counted nor failed. */
static int begin(int argc, char **argv)
{
    const char *text = getenv("FAULT");
    if (text)
        parse(text);
    started = true;
    return __real_main(argc, argv);
}

/* A run: strings with a zero at the end, of which the last one is empty. */
struct request {
    char *cwd, *out, *err, *fault, *count; /* "": no FAULT, no FAULT_COUNT */
    int argc;
    char *argv[100];
};

/* The next string of the standard input. After the last one the server ends. */
static char *next_string(void)
{
    char *s = NULL;
    size_t room = 0;
    if (getdelim(&s, &room, 0, stdin) < 0)
        _exit(0);
    return s;
}

static struct request next_request(char *program)
{
    struct request r = {.argc = 1, .argv = {program}};
    char **const first[] = {&r.cwd, &r.out, &r.err, &r.fault, &r.count};
    for (size_t i = 0; i < sizeof(first) / sizeof(first[0]); i++)
        *first[i] = next_string();
    char *s = next_string();
    for (; *s && r.argc + 1 < (int)(sizeof(r.argv) / sizeof(r.argv[0])); s = next_string())
        r.argv[r.argc++] = s;
    free(s);
    return r;
}

static void redirect(int fd, const char *path, int flags)
{
    const int file = open(path, flags, 0600);
    if (file < 0 || dup2(file, fd) < 0 || close(file))
        _exit(121);
}

static int run_request(struct request *r)
{
    redirect(0, "/dev/null", O_RDONLY);
    redirect(1, r->out, O_WRONLY | O_CREAT | O_TRUNC);
    redirect(2, r->err, O_WRONLY | O_CREAT | O_TRUNC);
    if (chdir(r->cwd) || (*r->fault && setenv("FAULT", r->fault, 1)) ||
        (*r->count && setenv("FAULT_COUNT", r->count, 1)) || unsetenv("FAULT_SERVER"))
        _exit(121);
    alarm(300); /* a run that does not end fails as the fault that it is */
    return begin(r->argc, r->argv);
}

/* Runs each request in a process of its own, which begins where main would: the libraries, which
 * take as long to load as a small run does, are loaded once. Writes the status of waitpid(), a line
 * a request. */
static void serve(char *program)
{
    for (;;) {
        struct request r = next_request(program);
        int status = 0;
        const pid_t child = fork();
        if (child == 0)
            exit(run_request(&r));
        if (child < 0 || waitpid(child, &status, 0) != child)
            _exit(121);
        dprintf(1, "%d\n", status);
        for (char **s = (char *[]){r.cwd, r.out, r.err, r.fault, r.count, NULL}; *s; s++)
            free(*s);
        while (r.argc > 1)
            free(r.argv[--r.argc]);
    }
}

int __wrap_main(int argc, char **argv)
{
    if (getenv("FAULT_SERVER"))
        serve(argv[0]);
    return begin(argc, argv);
}

/* Runs as a destructor: main has returned, and no call of this function is counted. */
__attribute__((destructor)) static void fault_end(void)
{
    const char *path = getenv("FAULT_COUNT");
    FILE *f = path ? fopen(path, "w") : NULL;
    if (!f)
        return;
    for (int i = 0; i < KINDS; i++)
        fprintf(f, "%s %ld\n", kind_name[i], atomic_load(&calls[i]));
    fclose(f);
}

static bool due_as(enum kind k)
{
    if (!started)
        return false;
    const long n = atomic_fetch_add(&calls[k], 1) + 1;
    return k == target && n >= target_n && n <= target_end;
}

/* Counts a call of kind k; changes: it changes a file or its name. Returns true if it must
 * fail with errno. */
static bool due(enum kind k, bool changes)
{
    const bool as_file = changes && due_as(FILE_ANY);
    if (!due_as(k) && !as_file)
        return false;
    if (action_kill)
        raise(SIGKILL);
    if (action_stop)
        raise(SIGINT);
    errno = action_errno;
    return action_errno != 0;
}

/* --- files -------------------------------------------------------------------------- */

/* clang-format off */
#define REAL(result, name, ...) \
    result __real_##name(__VA_ARGS__); \
    result __wrap_##name(__VA_ARGS__); \
    result __wrap_##name(__VA_ARGS__)
/* clang-format on */

REAL(int, open64, const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return due(OPEN, flags & O_CREAT) ? -1 : __real_open64(path, flags, mode);
}

REAL(ssize_t, write, int fd, const void *p, size_t n)
{
    const bool as_file = due_as(FILE_ANY), as_write = due_as(WRITE);
    if (!as_file && !as_write)
        return __real_write(fd, p, n);
    if (action_half || action_short) {
        const ssize_t done = __real_write(fd, p, n / 2 + (n == 1));
        if (action_half)
            raise(SIGKILL);
        return done;
    }
    if (action_kill)
        raise(SIGKILL);
    if (action_stop) {
        raise(SIGINT);
        return __real_write(fd, p, n);
    }
    errno = action_errno;
    return -1;
}

REAL(int, fsync, int fd)
{
    return due(FSYNC, true) ? -1 : __real_fsync(fd);
}

/* Like the system's close, it closes the file whatever it returns. */
REAL(int, close, int fd)
{
    const bool fail = due(CLOSE, false);
    const int saved = errno, result = __real_close(fd);
    errno = fail ? saved : errno;
    return fail ? -1 : result;
}

REAL(int, rename, const char *from, const char *to)
{
    return due(RENAME, true) ? -1 : __real_rename(from, to);
}

REAL(int, renameat2, int from_fd, const char *from, int to_fd, const char *to,
     unsigned flags)
{
    return due(RENAME, true) ? -1 : __real_renameat2(from_fd, from, to_fd, to, flags);
}

REAL(int, posix_fallocate64, int fd, off_t at, off_t n)
{
    return due(RESERVE, true) ? errno : __real_posix_fallocate64(fd, at, n);
}

REAL(int, ftruncate64, int fd, off_t n)
{
    return due(RESERVE, true) ? -1 : __real_ftruncate64(fd, n);
}

REAL(void *, mmap64, void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    return due(MMAP, false) ? MAP_FAILED : __real_mmap64(at, n, prot, flags, fd, offset);
}

REAL(int, unlink, const char *path)
{
    return due(NAMES, true) ? -1 : __real_unlink(path);
}

REAL(int, unlinkat, int dir, const char *name, int flags)
{
    return due(NAMES, true) ? -1 : __real_unlinkat(dir, name, flags);
}

REAL(int, link, const char *from, const char *to)
{
    return due(NAMES, true) ? -1 : __real_link(from, to);
}

REAL(int, mkdir, const char *path, mode_t mode)
{
    return due(NAMES, true) ? -1 : __real_mkdir(path, mode);
}

REAL(int, rmdir, const char *path)
{
    return due(NAMES, true) ? -1 : __real_rmdir(path);
}

REAL(DIR *, opendir, const char *path)
{
    return due(OPENDIR, false) ? NULL : __real_opendir(path);
}

REAL(int, flock, int fd, int operation)
{
    return due(LOCK, false) ? -1 : __real_flock(fd, operation);
}

REAL(int, pthread_create, pthread_t *t, const pthread_attr_t *a, void *(*f)(void *),
     void *ctx)
{
    return due(THREAD, false) ? EAGAIN : __real_pthread_create(t, a, f, ctx);
}

/* --- memory ------------------------------------------------------------------------- */

REAL(void *, malloc, size_t n)
{
    return due(ALLOC, false) ? NULL : __real_malloc(n);
}

REAL(void *, calloc, size_t n, size_t unit)
{
    return due(ALLOC, false) ? NULL : __real_calloc(n, unit);
}

REAL(void *, realloc, void *p, size_t n)
{
    return due(ALLOC, false) ? NULL : __real_realloc(p, n);
}

REAL(void *, aligned_alloc, size_t align, size_t n)
{
    return due(ALLOC, false) ? NULL : __real_aligned_alloc(align, n);
}

REAL(char *, strdup, const char *s)
{
    return due(ALLOC, false) ? NULL : __real_strdup(s);
}

REAL(char *, realpath, const char *path, char *out)
{
    return due(ALLOC, false) ? NULL : __real_realpath(path, out);
}

REAL(int, vasprintf, char **out, const char *fmt, va_list ap)
{
    return due(ALLOC, false) ? -1 : __real_vasprintf(out, fmt, ap);
}

REAL(FILE *, open_memstream, char **out, size_t *n)
{
    return due(ALLOC, false) ? NULL : __real_open_memstream(out, n);
}
