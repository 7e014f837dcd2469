/* SPDX-License-Identifier: MIT */
#include "tests/fuzz/fuzz.h"

#include "data/json_seal.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tests/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BUFFERS 4
#define COPY_LIMIT ((size_t)16 << 20)

static char dir[256];
static volatile uint32_t sink;

static void fatal(const char *what)
{
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

const char *fuzz_path(const char *name)
{
    static char buffer[PATH_BUFFERS][512];
    static int next;
    char *path = buffer[next++ % PATH_BUFFERS];
    snprintf(path, sizeof(buffer[0]), "%s%s%s", dir, *name ? "/" : "", name);
    return path;
}

/* The product's writer is not used, because it would sync every file. */
void fuzz_put(const char *name, const void *data, size_t n)
{
    const int fd = open(fuzz_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        fatal(strerror(errno));
    for (size_t at = 0; at < n;) {
        const ssize_t got = write(fd, (const char *)data + at, n - at);
        if (got <= 0)
            fatal(strerror(errno));
        at += (size_t)got;
    }
    close(fd);
}

void fuzz_copy(const char *from, const char *name)
{
    const char *base = getenv("WKVQ_FUZZ_BASE");
    char *path = NULL, *text = NULL;
    size_t n = 0;
    if (!base)
        fatal("WKVQ_FUZZ_BASE is not set; tests/fuzz/run sets it");
    if (file_join(&path, base, from) || file_read_all(&text, &n, path, COPY_LIMIT))
        fatal(err_text());
    fuzz_put(name, text, n);
    mem_free(text);
    mem_free(path);
}

void fuzz_check(enum err e)
{
    if (e && (err_exit_status(e) != 2 || !*err_text())) {
        fprintf(stderr, "fuzz: %s error, exit %d: \"%s\" (%s)\n", err_name(e),
                err_exit_status(e), err_text(), err_where());
        abort();
    }
    err_clear();
}

/* KEY, eight digits, END: the CRC is taken of all before. */
void fuzz_seal(char *text, size_t n)
{
    if (n >= JSON_SEAL_BYTES)
        json_seal(text + n - JSON_SEAL_BYTES, bytes_crc32(0, text, n - JSON_SEAL_BYTES));
}

void fuzz_sealed(const void *data, size_t n, void (*read)(const void *data, size_t n))
{
    char *text = malloc(n + 1);
    if (!text)
        abort();
    if (n)
        memcpy(text, data, n);
    read(text, n);
    fuzz_seal(text, n);
    read(text, n);
    free(text);
}

void fuzz_use(const void *p, size_t n)
{
    if (n)
        sink = bytes_crc32(sink, p, n);
}

static void quiet(void *ctx, enum log_level level, const char *line)
{
}

static void remove_dir(void)
{
    if (!scratch_remove(dir))
        fprintf(stderr, "fuzz: %s stays\n", dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    if (!scratch_dir(dir, sizeof(dir)))
        fatal("no scratch directory");
    atexit(remove_dir);
    log_set_sink(quiet, NULL);
    fuzz_setup();
    return 0;
}
