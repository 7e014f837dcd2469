/* SPDX-License-Identifier: MIT
 *
 * Error codes, and the sentence that goes with the first failure.
 *
 * Rules that hold in the whole tree:
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

/* Records e and its sentence, unless this thread has recorded a failure already. Returns e.
 * All functions here are thread-safe: each thread has its own record. */
enum err err_set(enum err e, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts a prefix before the recorded sentence. Returns e, for use in a return statement. */
enum err err_add(enum err e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Replaces control characters in s by '?', so that a name from an untrusted file cannot
 * send commands to the terminal. err_set(), err_add() and the log do this themselves. */
void err_show_plain(char *s);

/* The recorded sentence, or "". Valid until this thread's next err_* call. */
const char *err_text(void);
/* The place where it was recorded, as "file.c:123". */
const char *err_where(void);
void err_clear(void);

/* The name of a code, such as "format", and the exit status of a command that fails with
 * it. */
const char *err_name(enum err e);
int err_exit_status(enum err e);

/* clang-format off */
#define FAIL(e, ...) return err_set((e), __FILE__, __LINE__, __VA_ARGS__)
#define FAIL_IF(cond, e, ...) do { if (cond) FAIL(e, __VA_ARGS__); } while (0)
#define TRY(expr) do { enum err try_ = (expr); if (try_) return try_; } while (0)
#define TRY_OUT(expr) do { if ((err = (expr))) goto out; } while (0)
/* clang-format on */

/* FAIL for a function that must release something: sets err and jumps to out. */
#define FAIL_OUT(e, ...)                                                                   \
    do {                                                                                   \
        err = err_set((e), __FILE__, __LINE__, __VA_ARGS__);                               \
        goto out;                                                                          \
    } while (0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
