/* SPDX-License-Identifier: MIT
 *
 * checkop [--device NAME] [--op NAME,...] [--seed N] [--every N] [--first] [--bench]
 * [--self-test]: see checkop.h. Without --device it runs cpu, at each instruction set that
 * the machine has. --every: one case of N. --first: ends at the first failure. Exit status 1
 * if results differ. */
#include "kernels/cpu/cpu.h"
#include "tests/kernels/checkop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct ck_test *const groups[] = {
    ck_gemm_tests,  ck_norm_tests,    ck_attn_tests,   ck_mlp_tests,   ck_weight_tests,
    ck_quant_tests, ck_channel_tests, ck_refine_tests, ck_train_tests, ck_far_tests};

static void report(const struct ck *c)
{
    if (!c->bench) {
        printf("%-14s %-11s %5d cases, %d failures\n", c->op, c->level, c->n_cases,
               c->n_failed);
        return;
    }
    double us[N_SIDES] = {0};
    for (int i = 0; i < N_SIDES; i++)
        if (c->runs[i])
            us[i] = c->seconds[i] / (double)c->runs[i] * 1e6;
    printf("%-14s %-11s ref %10.1f us, cpu %10.1f us, %7.1f x\n", c->op, c->level,
           us[SIDE_REF], us[SIDE_CPU], us[SIDE_CPU] > 0 ? us[SIDE_REF] / us[SIDE_CPU] : 0);
}

/* True if a list of names, separated by commas, has the name. */
static bool listed(const char *list, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = list; p; p = strchr(p, ','), p += p != NULL)
        if (!strncmp(p, name, n) && (!p[n] || p[n] == ','))
            return true;
    return false;
}

/* Failures of one level; `found` counts the operations that ran. */
static int run_level(struct ck *c, const char *only, int *found)
{
    int failed = 0;
    for (size_t g = 0; g < ARRAY_LEN(groups); g++)
        for (const struct ck_test *t = groups[g]; t->op; t++) {
            if (only && !listed(only, t->op))
                continue;
            ck_run(c, t);
            report(c);
            failed += c->n_failed;
            ++*found;
        }
    return failed;
}

static enum err run_device(struct ck *c, const char *name, const char *only, int *failed,
                           int *found)
{
    enum err err = OK;
    c->level = name;
    TRY_OUT(dev_open(&c->dev[SIDE_REF], &(struct dev_settings){"ref", 1}));
    TRY_OUT(dev_open(&c->dev[SIDE_CPU], &(struct dev_settings){name, 2}));
    printf("%s: %s\n", c->level, dev_about(c->dev[SIDE_CPU]));
    *failed += run_level(c, only, found);
out:
    dev_close(&c->dev[SIDE_REF]);
    dev_close(&c->dev[SIDE_CPU]);
    return err;
}

static enum err run_levels(struct ck *c, const char *only, int *failed, int *found)
{
    enum err err = OK;
    for (enum isa isa = c->bench ? cpu_best_isa() : ISA_PLAIN; isa < N_ISAS; isa++) {
        if (!cpu_has_isa(isa))
            continue;
        cpu_limit_isa(isa);
        c->level = isa_text(isa);
        TRY_OUT(dev_open(&c->dev[SIDE_REF], &(struct dev_settings){"ref", 1}));
        TRY_OUT(dev_open(&c->dev[SIDE_CPU], &(struct dev_settings){"cpu", 2}));
        printf("%s: %s\n", c->level, dev_about(c->dev[SIDE_CPU]));
        *failed += run_level(c, only, found);
        dev_close(&c->dev[SIDE_REF]);
        dev_close(&c->dev[SIDE_CPU]);
    }
out:
    dev_close(&c->dev[SIDE_REF]);
    dev_close(&c->dev[SIDE_CPU]);
    return err;
}

static int usage(const char *arg)
{
    fprintf(stderr,
            "checkop: bad option '%s'\n"
            "usage: checkop [--device NAME] [--op NAME,...] [--seed N] "
            "[--every N] [--first] [--bench] [--self-test]\n",
            arg);
    return 2;
}

int main(int argc, char **argv)
{
    struct ck c = {.seed = (uint64_t)time(NULL)};
    const char *only = NULL, *device = NULL;
    bool self_test = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench"))
            c.bench = true;
        else if (!strcmp(argv[i], "--first"))
            c.first = true;
        else if (!strcmp(argv[i], "--self-test"))
            self_test = true;
        else if (!strcmp(argv[i], "--op") && i + 1 < argc)
            only = argv[++i];
        else if (!strcmp(argv[i], "--device") && i + 1 < argc)
            device = argv[++i];
        else if (!strcmp(argv[i], "--every") && i + 1 < argc)
            c.every = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            c.seed = strtoull(argv[++i], NULL, 0);
        else
            return usage(argv[i]);
    }
    char seed[24];
    snprintf(seed, sizeof(seed), "%llu", (unsigned long long)c.seed);
    setenv("EMU_SEED", seed, 0);            /* the order of the emulation's threads */
    setvbuf(stdout, NULL, _IOLBF, 1 << 12); /* a run that is cut keeps what it found */
    printf("seed %s\n", seed);
    if (self_test)
        return ck_self_test(c.seed) != 0;
    int failed = 0, found = 0;
    if (device ? run_device(&c, device, only, &failed, &found)
               : run_levels(&c, only, &failed, &found)) {
        fprintf(stderr, "checkop: %s\n", err_text());
        return 1;
    }
    if (!found)
        return usage(only ? only : "");
    printf("%d failures\n", failed);
    return failed != 0;
}
