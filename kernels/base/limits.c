/* SPDX-License-Identifier: MIT */
#include "kernels/base/limits.h"

#include <ctype.h>
#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_ROOM 4096

/* --- small files -------------------------------------------------------------------- */

static FILE *open_below(const char *dir, const char *name)
{
    char path[2 * PATH_ROOM];
    const int n = snprintf(path, sizeof(path), "%s/%s", dir, name);
    return n > 0 && (size_t)n < sizeof(path) ? fopen(path, "re") : NULL;
}

static bool read_line(char *line, size_t n, const char *dir, const char *name)
{
    FILE *f = open_below(dir, name);
    if (!f)
        return false;
    const bool ok = fgets(line, (int)n, f) != NULL;
    fclose(f);
    return ok;
}

/* Parses a decimal number at the start of text. Returns false for "max", "-1", "unlimited"
 * and invalid text. */
static bool parse_number(uint64_t *out, const char *text, char **end)
{
    while (*text == ' ' || *text == '\t')
        text++;
    if (!isdigit((unsigned char)*text))
        return false;
    *out = strtoull(text, end, 10);
    return !**end || isspace((unsigned char)**end);
}

static bool read_number(uint64_t *out, const char *dir, const char *name)
{
    char line[64], *end;
    return read_line(line, sizeof(line), dir, name) && parse_number(out, line, &end);
}

/* Finds the number after key in a file with one "key number" per line. */
static bool find_number(uint64_t *out, const char *dir, const char *name, const char *key)
{
    char line[512], *end;
    bool found = false;
    const size_t n = strlen(key);
    FILE *f = open_below(dir, name);
    if (!f)
        return false;
    while (!found && fgets(line, sizeof(line), f))
        found = !strncmp(line, key, n) && isspace((unsigned char)line[n]) &&
                parse_number(out, line + n, &end);
    fclose(f);
    return found;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static void tighten(struct limit *l, uint64_t amount, const char *name, const char *where)
{
    if (amount >= l->amount)
        return;
    l->amount = amount;
    if (where)
        snprintf(l->name, sizeof(l->name), "%s (%.200s)", name, where);
    else
        snprintf(l->name, sizeof(l->name), "%s", name);
}

/* --- control groups ----------------------------------------------------------------- */

/* A control group. Its directory is root, mount and path concatenated. */
struct group {
    char mount[PATH_ROOM], path[PATH_ROOM];
};

static bool has_word(const char *list, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = list; (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ',') && (!p[n] || p[n] == ','))
            return true;
    return false;
}

/* Returns the process's path in a line "ID:CONTROLLERS:PATH"; v2 has ID 0 and no
 * controllers. */
static bool path_of_line(char *path, char *line, const char *controller)
{
    char *list = strchr(line, ':');
    char *rest = list ? strchr(list + 1, ':') : NULL;
    if (!rest || rest[1] != '/')
        return false;
    *rest++ = '\0';
    list++;
    if (controller ? !has_word(list, controller) : strncmp(line, "0:", 2) || *list)
        return false;
    rest[strcspn(rest, "\n")] = '\0';
    snprintf(path, PATH_ROOM, "%s", rest);
    return true;
}

static bool find_path(char *path, const char *root, const char *controller)
{
    char line[PATH_ROOM];
    bool found = false;
    FILE *f = open_below(root, "proc/self/cgroup");
    if (!f)
        return false;
    while (!found && fgets(line, sizeof(line), f))
        found = path_of_line(path, line, controller);
    fclose(f);
    return found;
}

/* Returns the hierarchy's mount in a line of mountinfo: "ID PARENT DEVICE ROOT MOUNT
 * OPTIONS ... - TYPE SOURCE SUPER_OPTIONS". */
static bool mount_of_line(char *top, char *mount, const char *line, const char *controller)
{
    char type[32], options[512];
    const char *rest = strstr(line, " - ");
    if (!rest || sscanf(rest, " - %31s %*s %511s", type, options) != 2 ||
        sscanf(line, "%*s %*s %*s %4095s %4095s", top, mount) != 2)
        return false;
    if (!controller)
        return !strcmp(type, "cgroup2");
    return !strcmp(type, "cgroup") && has_word(options, controller);
}

static bool find_mount(char *top, char *mount, const char *root, const char *controller)
{
    char line[PATH_ROOM];
    bool found = false;
    FILE *f = open_below(root, "proc/self/mountinfo");
    if (!f)
        return false;
    while (!found && fgets(line, sizeof(line), f))
        found = mount_of_line(top, mount, line, controller);
    fclose(f);
    return found;
}

/* Finds the group of a controller; NULL: of the unified hierarchy (v2). In a container, the
 * mount may show only the part of the hierarchy below `top`. If the path is outside of it,
 * the limits are those of the mount. */
static bool find_group(struct group *g, const char *root, const char *controller)
{
    char top[PATH_ROOM], path[PATH_ROOM];
    if (!find_path(path, root, controller) || !find_mount(top, g->mount, root, controller))
        return false;
    const size_t n = strcmp(top, "/") ? strlen(top) : 0;
    const bool inside =
        !strncmp(path, top, n) && (!path[n] || path[n] == '/') && !strstr(path, "/..");
    snprintf(g->path, sizeof(g->path), "%s", inside ? path + n : "");
    if (!strcmp(g->path, "/"))
        g->path[0] = '\0';
    return true;
}

typedef void level_reader(struct limit *l, const char *dir, const char *shown);

/* Visits the group's own level, then each level above it up to the mount. */
static void walk(struct limit *l, const char *root, const char *controller,
                 level_reader *read)
{
    struct group g;
    char dir[3 * PATH_ROOM];
    if (!find_group(&g, root, controller))
        return;
    for (;;) {
        snprintf(dir, sizeof(dir), "%s%s%s", root, g.mount, g.path);
        read(l, dir, dir + strlen(root));
        char *slash = strrchr(g.path, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

/* Returns the use that cannot be reclaimed. Inactive file pages are reclaimed before an
 * allocation fails. */
static uint64_t use_of(const char *dir, const char *file, const char *key)
{
    uint64_t use = 0, reclaimable = 0;
    if (!read_number(&use, dir, file))
        return 0;
    if (!find_number(&reclaimable, dir, "memory.stat", key))
        reclaimable = 0;
    return minus(use, reclaimable);
}

static void memory_v2(struct limit *l, const char *dir, const char *shown)
{
    static const char *const file[] = {"memory.max", "memory.high"};
    uint64_t max;
    for (int i = 0; i < 2; i++) {
        char name[32];
        snprintf(name, sizeof(name), "cgroup %s", file[i]);
        if (read_number(&max, dir, file[i]))
            tighten(l, minus(max, use_of(dir, "memory.current", "inactive_file")), name,
                    shown);
    }
}

static void memory_v1(struct limit *l, const char *dir, const char *shown)
{
    uint64_t max;
    if (read_number(&max, dir, "memory.limit_in_bytes"))
        tighten(l, minus(max, use_of(dir, "memory.usage_in_bytes", "total_inactive_file")),
                "cgroup memory.limit_in_bytes", shown);
}

/* Applies a quota of processors, rounded up: a fraction of a processor still does work, and
 * the quota slows all threads equally. */
static void tighten_quota(struct limit *l, uint64_t quota, uint64_t period,
                          const char *name, const char *shown)
{
    if (quota && period)
        tighten(l, (quota - 1) / period + 1, name, shown);
}

static void cpus_v2(struct limit *l, const char *dir, const char *shown)
{
    char line[64], *end;
    uint64_t quota, period;
    if (read_line(line, sizeof(line), dir, "cpu.max") && parse_number(&quota, line, &end) &&
        parse_number(&period, end, &end))
        tighten_quota(l, quota, period, "cgroup cpu.max", shown);
}

static void cpus_v1(struct limit *l, const char *dir, const char *shown)
{
    uint64_t quota, period;
    if (read_number(&quota, dir, "cpu.cfs_quota_us") &&
        read_number(&period, dir, "cpu.cfs_period_us"))
        tighten_quota(l, quota, period, "cgroup cpu.cfs_quota_us", shown);
}

/* --- all of them -------------------------------------------------------------------- */

static void tighten_rlimit(struct limit *l, const char *root, const char *row,
                           const char *used_key, const char *name)
{
    uint64_t max, used_kib;
    if (find_number(&max, root, "proc/self/limits", row) &&
        find_number(&used_kib, root, "proc/self/status", used_key))
        tighten(l, minus(max, 1024 * used_kib), name, NULL);
}

static void tighten_address_space(struct limit *l, const char *root)
{
    tighten_rlimit(l, root, "Max address space", "VmSize:", "RLIMIT_AS (ulimit -v)");
    tighten_rlimit(l, root, "Max data size", "VmData:", "RLIMIT_DATA (ulimit -d)");
}

void limits_address_space(struct limit *out, const char *root)
{
    *out = (struct limit){UINT64_MAX, "vm.overcommit_memory"};
    tighten_address_space(out, root);
}

void limits_memory(struct limit *out, const char *root)
{
    struct limit l = {UINT64_MAX, "unknown"};
    uint64_t kib;
    tighten_address_space(&l, root);
    if (find_number(&kib, root, "proc/meminfo", "MemAvailable:"))
        tighten(&l, 1024 * kib, "MemAvailable", NULL);
    walk(&l, root, NULL, memory_v2);
    walk(&l, root, "memory", memory_v1);
    if (l.amount == UINT64_MAX)
        l.amount = 0;
    *out = l;
}

void limits_cpus(struct limit *out, const char *root, int usable)
{
    struct limit l = {(uint64_t)(usable > 0 ? usable : 1), "CPU affinity"};
    walk(&l, root, NULL, cpus_v2);
    walk(&l, root, "cpu", cpus_v1);
    *out = l;
}

/* The kernel refuses a mask that is smaller than its own. */
int limits_affinity(void)
{
    for (int room = 1024; room <= 1 << 16; room *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)room);
        const size_t bytes = CPU_ALLOC_SIZE((size_t)room);
        if (!set)
            return 1;
        const int n = sched_getaffinity(0, bytes, set) ? 0 : CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
        if (n > 0)
            return n;
    }
    return 1;
}

uint64_t memory_available(void)
{
    struct limit l;
    limits_memory(&l, "");
    return l.amount;
}

int cpus_available(void)
{
    struct limit l;
    limits_cpus(&l, "", limits_affinity());
    return (int)l.amount;
}
