/* SPDX-License-Identifier: MIT
 *
 * checkop: rows so far apart that the distance in elements exceeds an int, as in matrices of
 * large models. The tensors lie in reserved addresses, of which only the rows have memory, so
 * a GPU cannot run this test. */
#include "kernels/base/mem.h"
#include "tests/kernels/checkop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ROWS 3
#define TERMS 256              /* of the longest sum, for the tolerance */
#define LARGEST 6.0            /* random value */
#define FAR (INT64_C(1) << 31) /* elements between rows; a multiple of each vector */

static size_t far_bytes(const struct tensor *t)
{
    return (size_t)(ROWS * FAR) * dtype_bytes(t->dtype);
}

/* The same tensor, with its rows far apart. Release it with munmap(). */
static struct tensor moved_apart(const struct tensor *near)
{
    struct tensor t = *near;
    t.ld = FAR;
    t.data = mmap(NULL, far_bytes(near), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (t.data == MAP_FAILED) {
        fprintf(stderr, "checkop: no addresses for %zu bytes\n", far_bytes(near));
        exit(1);
    }
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t k = 0; k < ck_cols(near); k++)
            ck_set(&t, r, k, ck_get(near, r, k));
    return t;
}

/* Operands, as the reference has them and far apart. */
struct operands {
    struct tensor side[2][3];
    int n;
};

static struct operands open_operands(struct ck *c, const struct ck_shape *shapes, int n)
{
    struct operands o = {.n = n};
    for (int i = 0; i < n; i++) {
        o.side[SIDE_REF][i] = ck_in(c, shapes[i], PAT_RANDOM);
        o.side[SIDE_CPU][i] = moved_apart(&o.side[SIDE_REF][i]);
    }
    return o;
}

static void close_operands(struct operands *o)
{
    for (int i = 0; i < o->n; i++)
        munmap(o->side[SIDE_CPU][i].data, far_bytes(&o->side[SIDE_CPU][i]));
}

/* A result of each side, the second far apart. */
static struct ck_out open_result(struct ck *c, struct ck_shape s)
{
    struct ck_out y = ck_twins(c, s, PAT_RANDOM);
    y.side[SIDE_CPU] = moved_apart(&y.side[SIDE_REF]);
    return y;
}

static void close_result(struct ck *c, struct ck_out *y, double magnitude)
{
    const int64_t n = tensor_count(&y->side[SIDE_REF]);
    double *mag = ck_doubles(c, n);
    for (int64_t i = 0; i < n; i++)
        mag[i] = magnitude;
    ck_close(c, "y", y, mag, TERMS);
    munmap(y->side[SIDE_CPU].data, far_bytes(&y->side[SIDE_CPU]));
}

static void far_add(struct ck *c, enum dtype t)
{
    if (!ck_begin(c, "add, %s", dtype_name(t)))
        return;
    const struct ck_shape s = ck_2d(t, ROWS, 21, 0);
    struct operands o = open_operands(c, (struct ck_shape[]){s, s}, 2);
    struct ck_out y = open_result(c, s);
    CK_EACH(c, i)
    ck_ok(c, dev_add(c->dev[i], &y.side[i], &o.side[i][0], &o.side[i][1]));
    close_result(c, &y, 2 * LARGEST);
    close_operands(&o);
    ck_end(c);
}

static void far_norm(struct ck *c, enum dtype t)
{
    if (!ck_begin(c, "rmsnorm, %s", dtype_name(t)))
        return;
    const struct tensor g = ck_in(c, ck_1d(300), PAT_ONE);
    struct operands o =
        open_operands(c, (struct ck_shape[]){ck_2d(DT_F32, ROWS, 300, 0)}, 1);
    const struct ck_out scale = ck_poisoned(c, ck_1d(ROWS));
    struct ck_out y = open_result(c, ck_2d(t, ROWS, 300, 0));
    CK_EACH(c, i)
    ck_ok(c,
          dev_rmsnorm(c->dev[i], &y.side[i], &scale.side[i], NULL,
                      &(struct rmsnorm_inputs){.x = &o.side[i][0], .g = &g, .eps = 1e-5f}));
    close_result(c, &y, LARGEST);
    close_operands(&o);
    ck_end(c);
}

/* With BF16, the weights may be rounded by 2^-8 before their sum. */
static double attn_magnitude(enum dtype t)
{
    return LARGEST * (t == DT_BF16 ? 0x1p-8 / close_tolerance(DT_BF16, TERMS).sum : 1);
}

static void far_attn(struct ck *c, enum dtype t)
{
    if (!ck_begin(c, "attn, %s", dtype_name(t)))
        return;
    const struct ck_shape s = ck_3d(t, ROWS, 2, 16, 0);
    struct operands o = open_operands(c, (struct ck_shape[]){s, s, s}, 3);
    const struct ck_out lse = ck_poisoned(c, ck_2d(DT_F32, 2, ROWS, 0));
    struct ck_out y = open_result(c, s);
    CK_EACH(c, i)
    ck_ok(c, dev_attn(c->dev[i], &y.side[i], &lse.side[i],
                      &(struct attn_inputs){.q = &o.side[i][0],
                                            .k = &o.side[i][1],
                                            .v = &o.side[i][2],
                                            .scale = 0.25f}));
    close_result(c, &y, attn_magnitude(t));
    close_operands(&o);
    ck_end(c);
}

static void far_cache(struct ck *c, enum dtype t)
{
    if (!ck_begin(c, "fake_quant_kv, %s", dtype_name(t)))
        return;
    const struct ck_shape s = ck_3d(t, ROWS, 2, 16, 0);
    struct operands o = open_operands(c, (struct ck_shape[]){s}, 1);
    struct ck_out y = open_result(c, s);
    CK_EACH(c, i)
    ck_ok(c, dev_fake_quant_kv(
                 c->dev[i], &y.side[i],
                 &(struct kv_quant){.x = &o.side[i][0], .bits = 4, .group_size = 16}));
    close_result(c, &y, LARGEST);
    close_operands(&o);
    ck_end(c);
}

static void test_far(struct ck *c)
{
    if (c->bench || !strcmp(dev_name(c->dev[SIDE_CPU]), "cuda"))
        return;
    for (int t = 0; t < 2; t++) {
        const enum dtype type = t ? DT_BF16 : DT_F32;
        far_add(c, type);
        far_norm(c, type);
        far_attn(c, type);
        far_cache(c, type);
    }
}

const struct ck_test ck_far_tests[] = {{"far", test_far}, {NULL, NULL}};
