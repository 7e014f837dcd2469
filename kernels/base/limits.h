/* SPDX-License-Identifier: MIT
 *
 * What this process may still take of the machine: memory and processors. The smallest of
 * all limits counts, and each result names the limit that it came from. */
#ifndef WKVQ_LIMITS_H
#define WKVQ_LIMITS_H

#include <stdint.h>

struct limit {
    uint64_t amount; /* bytes, or processors */
    char name[256]; /* "MemAvailable", "RLIMIT_AS (ulimit -v)", "cgroup memory.max (DIR)" */
};

/* Bytes that can still be allocated: the smallest of MemAvailable, of RLIMIT_AS and
 * RLIMIT_DATA minus what is mapped, and of the memory limit of each control group (v1 and
 * v2) that the process is in, minus the group's use that cannot be reclaimed. Files are
 * read below root: "" for the system's own, a directory with proc/ and sys/ for tests.
 * Unreadable or malformed files do not limit. amount is 0 and name "unknown" when nothing
 * is known. */
void limits_memory(struct limit *out, const char *root);
/* Of those, RLIMIT_AS and RLIMIT_DATA; without either the name is that of the system's
 * overcommit rule, and the amount UINT64_MAX. */
void limits_address_space(struct limit *out, const char *root);
/* Processors to run on, at least 1: the CPU affinity, here given as usable, or the
 * processor quota of a control group, rounded up. */
void limits_cpus(struct limit *out, const char *root, int usable);

/* The CPU affinity of this process; at least 1. */
int limits_affinity(void);
/* The amounts of the two for this system. */
uint64_t memory_available(void);
int cpus_available(void);

#endif
