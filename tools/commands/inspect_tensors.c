/* SPDX-License-Identifier: MIT */
#include "tools/commands/inspect_tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Return tensor i, NULL beyond the last. */
typedef const struct st_tensor *tensor_fn(const struct hf_model *m, int64_t i);

static const struct st_tensor *read_at(const struct hf_model *m, int64_t i)
{
    return i < hf_tensor_count(m) ? hf_tensor_at(m, i) : NULL;
}

/* Returns true if tensors are split or joined while they are read. */
static bool reshapes(const struct arch *a)
{
    return a->fused || a->n_experts;
}

static tensor_fn *listed(const struct arch *a)
{
    return reshapes(a) ? hf_stored_at : read_at;
}

struct inspect_contents inspect_contents(const struct hf_model *m)
{
    struct inspect_contents c = {0};
    while (listed(hf_arch(m))(m, c.stored))
        c.stored++;
    for (const struct st_tensor *t; (t = read_at(m, c.read)); c.read++) {
        int64_t n = 1;
        for (int k = 0; k < t->n_dims; k++)
            n *= t->dim[k]; /* cannot fail: the reader checked it against the file's size */
        c.weights += n;
        c.bytes += t->bytes;
    }
    return c;
}

/* Writes "[512,64]" to out. */
static void shape_text(char out[200], const struct st_tensor *t)
{
    size_t n = 0;
    out[n++] = '[';
    for (int k = 0; k < t->n_dims && n < 170; k++)
        n += (size_t)sprintf(out + n, "%s%" PRId64, k ? "," : "", t->dim[k]);
    strcpy(out + n, "]");
}

static json_t *tensors_json(const struct hf_model *m, tensor_fn *at)
{
    json_t *list = json_object();
    const struct st_tensor *t;
    for (int64_t i = 0; (t = at(m, i)); i++) {
        json_t *shape = json_array();
        for (int k = 0; k < t->n_dims; k++)
            json_array_append_new(shape, json_integer(t->dim[k]));
        json_object_set_new(list, t->name,
                            json_pack("{s:s, s:o, s:I}", "dtype", t->dtype_name, "shape",
                                      shape, "bytes", (json_int_t)t->bytes));
    }
    return list;
}

static void print_tensors(const struct hf_model *m, tensor_fn *at)
{
    const struct st_tensor *t;
    for (int64_t i = 0; (t = at(m, i)); i++) {
        char shape[200];
        shape_text(shape, t);
        printf("  %-60s %-4s %-16s %12zu bytes\n", t->name, t->dtype_name, shape, t->bytes);
    }
}

void inspect_print_reading(const struct arch *a, const struct inspect_contents *c)
{
    if (reshapes(a))
        printf("  read as    %" PRId64 " tensors: %s\n", c->read,
               a->fused ? "the rows of qkv_proj and of gate_up_proj become q_proj, k_proj, "
                          "v_proj, gate_proj and up_proj"
                        : "gate_proj, up_proj and down_proj have the rows of all experts "
                          "of a layer");
}

void inspect_print_tensors(const struct hf_model *m)
{
    const struct arch *a = hf_arch(m);
    print_tensors(m, listed(a));
    if (reshapes(a)) {
        printf("  read as\n");
        print_tensors(m, read_at);
    }
}

bool inspect_add_tensors(json_t *o, const struct hf_model *m)
{
    const struct arch *a = hf_arch(m);
    return !json_object_set_new(o, "tensors", tensors_json(m, listed(a))) &&
           (!reshapes(a) ||
            !json_object_set_new(o, "tensors_read", tensors_json(m, read_at)));
}
