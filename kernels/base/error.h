/* SPDX-License-Identifier: MIT
 *
 * Error codes, and the sentence that goes with the first failure.
 *
 * Laws that hold in the whole tree:
 *  - a function that can fail returns enum err; OK is 0;
 *  - out-parameters come first and are untouched on error, unless said otherwise;
 *  - the first failure of a thread is recorded with file, line and a sentence; err_add()
 *    puts context ("in model.safetensors: ") before it on the way up;
 *  - x_open(&p) pairs with x_close(&p), which accepts NULL and half-built objects and sets
 *    the pointer to NULL. */
#ifndef WKVQ_ERROR_H
#define WKVQ_ERROR_H

#include <stddef.h>

/* Values are stable and never renumbered. Decades: 10 input, 20 machine, 30 run. */
enum err {
    OK = 0,
    ERR_USAGE = 10,     /* wrong option or setting: exit 2 */
    ERR_FORMAT = 11,    /* a file's content is wrong: exit 2 */
    ERR_SUPPORT = 12,   /* valid, but not supported here: exit 2 */
    ERR_NOT_FOUND = 13, /* a file or tensor is missing: exit 2 */
    ERR_MISMATCH = 14,  /* a state or artifact belongs to something else: exit 2 */
    ERR_SHAPE = 15,     /* caller's mistake: tensors do not fit each other: exit 1 */
    ERR_IO = 20,        /* the system refused a read or write: exit 1 */
    ERR_MEMORY = 21,    /* out of memory: exit 1 */
    ERR_DEVICE = 22,    /* device missing, failed or lacks the operation: exit 1 */
    ERR_NUMERIC = 30,   /* a non-finite value: exit 1 */
    ERR_VERIFY = 31,    /* verification failed: exit 3 */
    ERR_STOPPED = 32,   /* interrupted, state saved: exit 130 */
};

/* Record e and its sentence if nothing is recorded yet on this thread. Returns e. */
enum err err_set(enum err e, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Put a prefix before the recorded sentence. Returns e, so that it can end a chain. */
enum err err_add(enum err e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Replace control characters by '?', so that a name out of a stranger's file cannot command
 * the terminal. Done for the recorded sentence and for every line of the log. */
void err_show_plain(char *s);

/* The recorded sentence, "" if none. Valid until the thread's next err_* call. */
const char *err_text(void);
/* Where it was recorded, "file.c:123". */
const char *err_where(void);
void err_clear(void);

/* Name of a code ("format"), and the process exit status it leads to. */
const char *err_name(enum err e);
int err_exit_status(enum err e);

/* clang-format off */
#define FAIL(e, ...) return err_set((e), __FILE__, __LINE__, __VA_ARGS__)
#define FAIL_IF(cond, e, ...) do { if (cond) FAIL(e, __VA_ARGS__); } while (0)
#define TRY(expr) do { enum err try_ = (expr); if (try_) return try_; } while (0)
#define TRY_OUT(expr) do { if ((err = (expr))) goto out; } while (0)
/* clang-format on */

/* FAIL for a function that owns something: sets err and goes to out. */
#define FAIL_OUT(e, ...)                                                                   \
    do {                                                                                   \
        err = err_set((e), __FILE__, __LINE__, __VA_ARGS__);                               \
        goto out;                                                                          \
    } while (0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
