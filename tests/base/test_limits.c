/* SPDX-License-Identifier: MIT
 *
 * Limits of memory and processors, read from trees of files in the kernel's formats. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/file/file.h"
#include "kernels/base/limits.h"
#include "kernels/base/mem.h"
#include "kernels/base/pool.h"
#include "tests/scratch.h"

#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define MIB ((uint64_t)1 << 20)
#define MEMINFO                                                                            \
    "MemTotal:       16384000 kB\nMemFree:          100000 kB\n"                           \
    "MemAvailable:    8192000 kB\nBuffers:            1000 kB\n"
#define MEMINFO_BYTES (UINT64_C(8192000) * 1024)
#define LIMITS(as, data)                                                                   \
    "Limit                     Soft Limit           Hard Limit           Units     \n"     \
    "Max cpu time              unlimited            unlimited            seconds   \n"     \
    "Max data size             " data "            unlimited            bytes     \n"      \
    "Max address space         " as "            unlimited            bytes     \n"
#define STATUS                                                                             \
    "Name:\twkvq\nVmPeak:\t  400000 kB\nVmSize:\t  200000 kB\nVmData:\t   50000 kB\n"
#define MOUNT_V2                                                                           \
    "22 1 0:20 / / rw,relatime - ext4 /dev/sda1 rw\n"                                      \
    "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define MOUNT_V1                                                                           \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"          \
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"                    \
    "35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"

struct tree {
    char root[256];
};

static int make_tree(void **state)
{
    struct tree *t = calloc(1, sizeof(*t));
    *state = t;
    return !t || !scratch_dir(t->root, sizeof(t->root));
}

static int remove_tree(void **state)
{
    struct tree *t = *state;
    char command[300];
    snprintf(command, sizeof(command), "rm -r '%s'", t->root);
    const int bad = system(command);
    free(t);
    return bad;
}

static void put(const struct tree *t, const char *name, const char *text)
{
    char path[600], *slash;
    snprintf(path, sizeof(path), "%s/%s", t->root, name);
    slash = strrchr(path, '/');
    *slash = '\0';
    assert_int_equal(file_make_dir(path), OK);
    *slash = '/';
    assert_int_equal(file_write_all(path, text, strlen(text)), OK);
}

static void check_memory(const struct tree *t, uint64_t amount, const char *name)
{
    struct limit l;
    limits_memory(&l, t->root);
    assert_string_equal(l.name, name);
    assert_int_equal(l.amount, amount);
}

static void check_cpus(const struct tree *t, int usable, uint64_t amount, const char *name)
{
    struct limit l;
    limits_cpus(&l, t->root, usable);
    assert_string_equal(l.name, name);
    assert_int_equal(l.amount, amount);
}

static void nothing_is_known(void **state)
{
    struct limit l;
    check_memory(*state, 0, "unknown");
    check_cpus(*state, 7, 7, "CPU affinity");
    check_cpus(*state, 0, 1, "CPU affinity");
    limits_address_space(&l, ((struct tree *)*state)->root);
    assert_true(l.amount == UINT64_MAX);
    assert_string_equal(l.name, "vm.overcommit_memory");
}

static void the_system_alone(void **state)
{
    put(*state, "proc/meminfo", MEMINFO);
    put(*state, "proc/self/status", STATUS);
    put(*state, "proc/self/limits", LIMITS("unlimited", "unlimited"));
    check_memory(*state, MEMINFO_BYTES, "MemAvailable");
}

static void limits_of_the_process(void **state)
{
    struct limit l;
    put(*state, "proc/meminfo", MEMINFO);
    put(*state, "proc/self/status", STATUS);
    put(*state, "proc/self/limits", LIMITS("307200000", "unlimited"));
    check_memory(*state, 307200000 - 204800000, "RLIMIT_AS (ulimit -v)");
    put(*state, "proc/self/limits", LIMITS("307200000", "100000000"));
    check_memory(*state, 100000000 - 51200000, "RLIMIT_DATA (ulimit -d)");
    put(*state, "proc/self/limits", LIMITS("100", "unlimited"));
    check_memory(*state, 0, "RLIMIT_AS (ulimit -v)");
    limits_address_space(&l, ((struct tree *)*state)->root);
    assert_int_equal(l.amount, 0);
}

static void a_group_of_v2(void **state)
{
    put(*state, "proc/meminfo", MEMINFO);
    put(*state, "proc/self/cgroup", "0::/user.slice/job\n");
    put(*state, "proc/self/mountinfo", MOUNT_V2);
    put(*state, "sys/fs/cgroup/user.slice/job/memory.max", "2147483648\n");
    check_memory(*state, 2048 * MIB, "cgroup memory.max (/sys/fs/cgroup/user.slice/job)");
    put(*state, "sys/fs/cgroup/user.slice/job/memory.current", "1073741824\n");
    check_memory(*state, 1024 * MIB, "cgroup memory.max (/sys/fs/cgroup/user.slice/job)");
    put(*state, "sys/fs/cgroup/user.slice/job/memory.stat",
        "anon 1000\nfile 900000000\ninactive_anon 5\ninactive_file 536870912\n");
    check_memory(*state, 1536 * MIB, "cgroup memory.max (/sys/fs/cgroup/user.slice/job)");
    put(*state, "sys/fs/cgroup/user.slice/job/memory.high", "1073741824\n");
    check_memory(*state, 512 * MIB, "cgroup memory.high (/sys/fs/cgroup/user.slice/job)");
    put(*state, "sys/fs/cgroup/user.slice/job/cpu.max", "150000 100000\n");
    check_cpus(*state, 8, 2, "cgroup cpu.max (/sys/fs/cgroup/user.slice/job)");
    check_cpus(*state, 1, 1, "CPU affinity");
}

static void a_parent_is_tighter(void **state)
{
    put(*state, "proc/meminfo", MEMINFO);
    put(*state, "proc/self/cgroup", "0::/a/b\n");
    put(*state, "proc/self/mountinfo", MOUNT_V2);
    put(*state, "sys/fs/cgroup/a/b/memory.max", "max\n");
    put(*state, "sys/fs/cgroup/a/b/memory.high", "max\n");
    put(*state, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    check_memory(*state, MEMINFO_BYTES, "MemAvailable");
    check_cpus(*state, 8, 8, "CPU affinity");
    put(*state, "sys/fs/cgroup/a/memory.max", "1048576000\n");
    put(*state, "sys/fs/cgroup/a/memory.current", "48576000\n");
    put(*state, "sys/fs/cgroup/a/cpu.max", "300000 100000\n");
    check_memory(*state, 1000000000, "cgroup memory.max (/sys/fs/cgroup/a)");
    check_cpus(*state, 8, 3, "cgroup cpu.max (/sys/fs/cgroup/a)");
    put(*state, "sys/fs/cgroup/memory.max",
        "500000000\n"); /* as a container sees its own */
    put(*state, "sys/fs/cgroup/cpu.max", "50000 100000\n");
    check_memory(*state, 500000000, "cgroup memory.max (/sys/fs/cgroup)");
    check_cpus(*state, 8, 1, "cgroup cpu.max (/sys/fs/cgroup)");
}

static void a_group_of_v1(void **state)
{
    put(*state, "proc/meminfo", MEMINFO);
    put(*state, "proc/self/cgroup",
        "9:name=systemd:/x\n4:memory:/job/1\n2:cpu,cpuacct:/job\n3:cpuset:/other\n0::/\n");
    put(*state, "proc/self/mountinfo", MOUNT_V1);
    put(*state, "sys/fs/cgroup/memory/job/1/memory.limit_in_bytes",
        "9223372036854771712\n");
    put(*state, "sys/fs/cgroup/memory/job/1/memory.usage_in_bytes", "5000\n");
    check_memory(*state, MEMINFO_BYTES, "MemAvailable");
    put(*state, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824\n");
    put(*state, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1073741824\n");
    put(*state, "sys/fs/cgroup/memory/job/memory.stat",
        "inactive_file 7\ntotal_inactive_file 104857600\n");
    check_memory(*state, 100 * MIB,
                 "cgroup memory.limit_in_bytes (/sys/fs/cgroup/memory/job)");
    put(*state, "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
    put(*state, "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
    check_cpus(*state, 8, 8, "CPU affinity");
    put(*state, "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "400000\n");
    check_cpus(*state, 8, 4, "cgroup cpu.cfs_quota_us (/sys/fs/cgroup/cpu,cpuacct/job)");
}

/* A container without its own namespace: its path is that of the host, and its mount shows
 * only a part of the hierarchy. */
static void a_container_of_v1(void **state)
{
    put(*state, "proc/self/cgroup", "4:memory:/docker/4f\n");
    put(*state, "proc/self/mountinfo",
        "35 31 0:32 /docker/4f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    put(*state, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
    check_memory(*state, 1000000, "cgroup memory.limit_in_bytes (/sys/fs/cgroup/memory)");
    put(*state, "proc/self/cgroup", "4:memory:/docker/4fa\n"); /* begins alike */
    check_memory(*state, 1000000, "cgroup memory.limit_in_bytes (/sys/fs/cgroup/memory)");
}

/* v1 for memory and v2 for processors; the smaller limit counts. */
static void both_versions(void **state)
{
    put(*state, "proc/self/cgroup", "4:memory:/m\n0::/../outside\n");
    put(*state, "proc/self/mountinfo",
        MOUNT_V1 "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    put(*state, "sys/fs/cgroup/memory/m/memory.limit_in_bytes", "2000000\n");
    put(*state, "sys/fs/cgroup/unified/memory.max", "3000000\n");
    put(*state, "sys/fs/cgroup/unified/cpu.max", "200000 100000\n");
    check_memory(*state, 2000000, "cgroup memory.limit_in_bytes (/sys/fs/cgroup/memory/m)");
    check_cpus(*state, 8, 2, "cgroup cpu.max (/sys/fs/cgroup/unified)");
}

static void garbage_does_not_limit(void **state)
{
    put(*state, "proc/meminfo", MEMINFO);
    put(*state, "proc/self/status", "VmSize:\tlots kB\n");
    put(*state, "proc/self/limits", LIMITS("12x", "-5"));
    put(*state, "proc/self/mountinfo", "nonsense\n\n - \n1 2 3 - cgroup2\n" MOUNT_V2);
    put(*state, "sys/fs/cgroup/g/memory.max", "12 potatoes\n");
    static const char *const group[] = {
        "", ":", "0:", "0::", "0::g\n", "0:::\n", "zero::/g\n", "4:memory\n"};
    for (size_t i = 0; i < sizeof(group) / sizeof(*group); i++) {
        put(*state, "proc/self/cgroup", group[i]);
        check_memory(*state, MEMINFO_BYTES, "MemAvailable");
    }
    static const char *const value[] = {"", "\n", "x", "-1", "1e9", "0x10", "12potatoes"};
    put(*state, "proc/self/cgroup", "0::/g\n");
    for (size_t i = 0; i < sizeof(value) / sizeof(*value); i++) {
        put(*state, "sys/fs/cgroup/g/memory.max", value[i]);
        put(*state, "sys/fs/cgroup/g/cpu.max", value[i]);
        check_memory(*state, MEMINFO_BYTES, "MemAvailable");
        check_cpus(*state, 8, 8, "CPU affinity");
    }
    put(*state, "sys/fs/cgroup/g/cpu.max", "100000 0\n");
    check_cpus(*state, 8, 8, "CPU affinity");
    put(*state, "sys/fs/cgroup/g/cpu.max", "0 100000\n");
    check_cpus(*state, 8, 8, "CPU affinity");
}

/* The kernel's own files, and an RLIMIT_AS that is really set. */
static void this_process(void **state)
{
    struct limit l;
    limits_memory(&l, "");
    assert_true(l.amount > MIB);
    assert_string_not_equal(l.name, "unknown");
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
    assert_int_equal(limits_affinity(), CPU_COUNT(&set));
    assert_in_range(cpus_available(), 1, CPU_COUNT(&set));
    struct pool *p = NULL;
    assert_int_equal(pool_open(&p, 0), OK);
    assert_int_equal(pool_threads(p), cpus_available());
    pool_close(&p);
}

/* Exit status 0: the limit is found, and exactly the remaining amount can be mapped.
 * Address sanitizers map more than any limit, so they are excluded. */
static int with_an_address_limit(void)
{
    struct limit l;
    uint64_t mapped = 0;
    const uint64_t page = 4096;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%" SCNu64, &mapped) != 1)
        return 2;
    fclose(f);
    const struct rlimit r = {mapped * page + 64 * MIB, RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &r))
        return 3;
    limits_address_space(&l, "");
    if (strcmp(l.name, "RLIMIT_AS (ulimit -v)") || l.amount > 65 * MIB ||
        l.amount < 62 * MIB)
        return 4;
    const size_t fits = (size_t)(l.amount - MIB), more = (size_t)(l.amount + MIB);
    void *p = mmap(NULL, more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED)
        return 5;
    p = mmap(NULL, fits, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? 6 : 0;
}

static void a_limit_that_is_set(void **state)
{
    int status = 0;
    const pid_t pid = fork();
    if (!pid)
        _exit(with_an_address_limit());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
#define IN_TREE(f) cmocka_unit_test_setup_teardown(f, make_tree, remove_tree)
    const struct CMUnitTest tests[] = {
        IN_TREE(nothing_is_known),
        IN_TREE(the_system_alone),
        IN_TREE(limits_of_the_process),
        IN_TREE(a_group_of_v2),
        IN_TREE(a_parent_is_tighter),
        IN_TREE(a_group_of_v1),
        IN_TREE(a_container_of_v1),
        IN_TREE(both_versions),
        IN_TREE(garbage_does_not_limit),
        cmocka_unit_test(this_process),
        cmocka_unit_test(a_limit_that_is_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
