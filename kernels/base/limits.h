/* SPDX-License-Identifier: MIT
 *
 * Memory and processors that this process may still use. The smallest limit counts, and
 * each result has the name of its limit. Thread-safe. */
#ifndef WKVQ_LIMITS_H
#define WKVQ_LIMITS_H

#include <stdint.h>

struct limit {
    uint64_t amount; /* bytes, or processors */
    char name[256]; /* "MemAvailable", "RLIMIT_AS (ulimit -v)", "cgroup memory.max (DIR)" */
};

/* Returns the bytes that can still be allocated. This is the smallest of MemAvailable, of
 * RLIMIT_AS and RLIMIT_DATA minus mapped memory, and of the memory limits of control
 * groups. Control groups are v1 or v2; their use that cannot be reclaimed is subtracted.
 * Files are read below root: "" for the system's own, a directory with proc/ and sys/ for
 * tests. Unreadable or malformed files do not limit. If nothing is known, amount is 0 and
 * name "unknown". */
void limits_memory(struct limit *out, const char *root);
/* Returns the smaller of RLIMIT_AS and RLIMIT_DATA. Without either, name is that of the
 * system's overcommit rule, and amount UINT64_MAX. */
void limits_address_space(struct limit *out, const char *root);
/* Returns the processors to use, at least 1: the smaller of the CPU affinity, passed as
 * usable, and the processor quota of a control group, rounded up. */
void limits_cpus(struct limit *out, const char *root, int usable);

/* Returns the number of processors in this process's CPU affinity, at least 1. */
int limits_affinity(void);
/* Return the amounts of limits_memory() and limits_cpus() for this system. */
uint64_t memory_available(void);
int cpus_available(void);

#endif
