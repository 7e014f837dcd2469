/* SPDX-License-Identifier: MIT
 *
 * `wkvq inspect`: contents of an artifact, a checkpoint or a calibration's state. It prints
 * sizes, counted from bytes, and memory at a batch and length. */
#include "calib/model/shapes.h"
#include "convert/artifact/reader.h"
#include "convert/checkpoint/hf.h"
#include "convert/format/artifact_names.h"
#include "convert/format/artifact_spec.h"
#include "convert/format/sizes.h"
#include "data/json.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/commands/commands.h"
#include "tools/commands/inspect_memory.h"
#include "tools/commands/inspect_tensors.h"
#include "tools/recipe/recipe.h"
#include "tools/state/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Inspection:"},
    {OPT_TEXT, 'b', "batch", "N,...", offsetof(struct args, batch), "1",
     .help = "Number of sequences, for the memory of the cache"},
    {OPT_TEXT, 'l', "length", "N,...", offsetof(struct args, length), "2048",
     .help = "Tokens of a sequence"},
    {OPT_FLAG, 'm', "memory", .offset = offsetof(struct args, memory_table),
     .help = "Print the memory term by term, for every batch and length"},
    {OPT_TEXT, .name = "shape", .arg = "MODEL", .offset = offsetof(struct args, shape),
     .choices = SHAPE_CHOICES,
     .help = "Use a model's shapes alone, without DIR"},
    {OPT_FLAG, 't', "tensors", .offset = offsetof(struct args, tensors),
     .help = "List the tensors too, and formats by layer in full, as --verbose does"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_report, NULL};

#define MB 1e-6

static const struct kv_spec full_cache = {.bits = 16};

/* Model and sizes of the memory estimates. */
struct memory {
    const struct arch *arch;
    uint64_t weights; /* bytes */
    const struct kv_spec *kv;
    struct memory_list batch, length;
};

static enum err memory_open(struct memory *m, const struct args *a)
{
    TRY(memory_list_parse(&m->batch, "batch", a->batch, 1 << 20));
    return memory_list_parse(&m->length, "length", a->length, 1 << 30);
}

/* Returns the bytes for the first batch and length. */
static json_t *memory_json(const struct memory *m)
{
    const int64_t batch = m->batch.value[0], length = m->length.value[0];
    const uint64_t cache = kv_cache_bytes(m->arch, m->kv, batch, length);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "batch", (json_int_t)batch, "length",
                     (json_int_t)length, "weight_bytes", (json_int_t)m->weights, "kv_bytes",
                     (json_int_t)cache, "kv_bytes_16bit",
                     (json_int_t)kv_cache_bytes(m->arch, &full_cache, batch, length),
                     "total_bytes", (json_int_t)(m->weights + cache));
}

static json_t *rope_json(const struct arch *a)
{
    json_t *o = json_pack("{s:s, s:f}", "rope_type", rope_name[a->rope], "rope_theta",
                          a->rope_theta);
    if (o && a->rope != ROPE_DEFAULT)
        json_object_set_new(o, "factor", json_real(a->rope_factor));
    if (o && (a->rope == ROPE_YARN || a->rope == ROPE_LONGROPE))
        json_object_set_new(o, "attention_factor", json_real(a->rope_attention));
    if (o && arch_rotary_dim(a) != a->head_dim)
        json_object_set_new(o, "rotary_dim", json_integer(a->rotary_dim));
    return o;
}

static json_t *arch_json(const struct arch *a)
{
    json_t *experts =
        a->n_experts
            ? json_pack("{s:I, s:I, s:b}", "number", (json_int_t)a->n_experts, "per_token",
                        (json_int_t)a->n_active, "normalized", (int)a->norm_active)
            : NULL;
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:o, s:o*}",
                     "model_type", a->model_type, "layers", (json_int_t)a->n_layers,
                     "hidden_size", (json_int_t)a->d_model, "intermediate_size",
                     (json_int_t)a->d_ff, "heads", (json_int_t)a->n_heads, "kv_heads",
                     (json_int_t)a->n_kv, "head_dim", (json_int_t)a->head_dim, "vocab_size",
                     (json_int_t)a->vocab, "max_positions", (json_int_t)a->max_positions,
                     "tied", (int)a->tied, "rope", rope_json(a), "experts", experts);
}

/* Prints o and releases it. NULL: ERR_MEMORY. */
static enum err print_json(json_t *o)
{
    const enum err err = json_print(o, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

/* Prints how the rotary embedding differs from the plain one. */
static void print_rope(const struct arch *a)
{
    const bool scaled = a->rope == ROPE_YARN || a->rope == ROPE_LONGROPE;
    const bool partial = arch_rotary_dim(a) != a->head_dim;
    if (a->rope == ROPE_DEFAULT && !partial)
        return;
    printf("  rope       %s", rope_name[a->rope]);
    if (partial)
        printf(", %" PRId64 " of %" PRId64 " channels of a head", a->rotary_dim,
               a->head_dim);
    if (a->rope != ROPE_DEFAULT && a->rope != ROPE_LONGROPE)
        printf(", factor %g", a->rope_factor);
    if (scaled)
        printf(", cos and sin times %.4g", a->rope_attention);
    if (a->rope == ROPE_YARN || a->rope == ROPE_LLAMA3)
        printf(", from %" PRId64 " positions", a->rope_original);
    if (a->rope == ROPE_LONGROPE)
        printf(", with its short factors,");
    if (a->rope != ROPE_DEFAULT)
        printf(" to %" PRId64, a->max_positions);
    putchar('\n');
}

/* longest: of a text, in tokens; 0: a shape alone has no limit. */
static void print_arch(const struct arch *a, int64_t longest)
{
    char texts[64] = "";
    if (longest)
        snprintf(texts, sizeof(texts), ", texts of up to %" PRId64 " tokens", longest);
    printf("  model      %s, %" PRId64 " layer%s of width %" PRId64 " and MLP %" PRId64
           ", %" PRId64 " head%s of %" PRId64 ", %" PRId64
           " for keys and values; vocabulary of %" PRId64 "%s%s\n",
           a->model_type, a->n_layers, plural(a->n_layers), a->d_model, a->d_ff, a->n_heads,
           plural(a->n_heads), a->head_dim, a->n_kv, a->vocab,
           a->tied ? ", head tied to the embedding" : "", texts);
    if (a->n_experts)
        printf("  experts    %" PRId64 " in a layer, %" PRId64
               " for a token; %.1f M of %.1f M "
               "weights of a layer's projections are used for a token\n",
               a->n_experts, a->n_active, 1e-6 * (double)arch_token_params(a),
               1e-6 * (double)arch_block_params(a));
    print_rope(a);
}

static void print_memory(const struct memory *m)
{
    for (int b = 0; b < m->batch.n; b++)
        for (int l = 0; l < m->length.n; l++) {
            const int64_t batch = m->batch.value[b], length = m->length.value[l];
            const uint64_t cache = kv_cache_bytes(m->arch, m->kv, batch, length);
            printf("  memory     %.1f MB of weights + %.1f MB of cache (%.1f MB at 16 "
                   "bits) = %.1f MB at batch %" PRId64 ", length %" PRId64 "\n",
                   MB * (double)m->weights, MB * (double)cache,
                   MB * (double)kv_cache_bytes(m->arch, &full_cache, batch, length),
                   MB * (double)(m->weights + cache), batch, length);
        }
}

/* Makes the rows of the --memory table. */
static enum err add_table(json_t *o, const struct memory *m, const struct memory_row *row,
                          int n)
{
    json_t *table = memory_table_json(m->arch, row, n, &m->batch, &m->length);
    FAIL_IF(json_object_set_new(o, "memory_table", table), ERR_MEMORY,
            "out of memory for the report");
    return OK;
}

/* --- artifact ----------------------------------------------------------------------- */

static enum err print_spec(const struct args *a, const struct artifact *art,
                           const struct artifact_sizes *m)
{
    const struct weight_spec *w = artifact_weight_spec(art);
    const bool rules = a->verbose || a->tensors;
    TRY(inspect_print_weights(artifact_arch(art), w, m, rules));
    if (weight_rounds_inputs(w))
        printf("  inputs     of projections rounded to %d bits, each token by itself\n",
               w->act_bits);
    return inspect_print_cache(artifact_arch(art), artifact_kv_spec(art), m, rules);
}

static enum err print_manifest_tensors(const json_t *manifest)
{
    const char *name;
    json_t *t;
    json_object_foreach(json_object_get(manifest, "tensors"), name, t)
    {
        char *shape = json_text(json_object_get(t, "shape"), JSON_COMPACT);
        FAIL_IF(!shape, ERR_MEMORY, "out of memory");
        printf("  %-60s %-4s %-16s %12" JSON_INTEGER_FORMAT " bytes\n", name,
               json_string_value(json_object_get(t, "dtype")), shape,
               json_integer_value(json_object_get(t, "bytes")));
        free(shape);
    }
    return OK;
}

static uint64_t tensor_bytes(const json_t *manifest)
{
    uint64_t total = 0;
    const char *name;
    json_t *t;
    json_object_foreach(json_object_get(manifest, "tensors"), name, t) total +=
        (uint64_t)json_integer_value(json_object_get(t, "bytes"));
    return total;
}

static json_t *artifact_json(const struct args *a, const struct artifact *art,
                             const struct artifact_sizes *m, const struct memory *mem,
                             json_t *manifest)
{
    json_t *o = json_pack(
        "{s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:O?, s:O?, "
        "s:O?}",
        "kind", "artifact", "path", a->pos.item[0], "model", arch_json(artifact_arch(art)),
        "quantization", spec_to_json(artifact_weight_spec(art), artifact_kv_spec(art)),
        "quantized_weights", (json_int_t)m->quantized_weights, "quantized_bytes",
        (json_int_t)m->quantized_bytes, "other_bytes", (json_int_t)m->other_bytes,
        "head_bytes", (json_int_t)m->head_bytes, "total_bytes", (json_int_t)m->total_bytes,
        "weight_bits", m->weight_bits, "head_bits", m->head_bits, "kv_bits", m->kv_bits,
        "memory", memory_json(mem), "product", json_object_get(manifest, "product"),
        "config", json_object_get(manifest, "config"), "provenance",
        json_object_get(manifest, "provenance"));
    if (o && a->tensors &&
        json_object_set(o, "tensors", json_object_get(manifest, "tensors"))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static enum err inspect_artifact(const struct args *a, struct memory *mem)
{
    enum err err = OK;
    struct artifact *art = NULL;
    struct artifact_sizes m;
    json_t *manifest = NULL;
    TRY(artifact_open(&art, a->pos.item[0], 0));
    const char *text = artifact_manifest(art);
    TRY_OUT(json_parse(&manifest, text, strlen(text), "manifest.json"));
    artifact_measure(&m, art);
    const struct memory_row rows[] = {
        {"artifact", *artifact_weight_spec(art), *artifact_kv_spec(art)}, memory_rows[0]};
    mem->arch = artifact_arch(art);
    mem->weights = tensor_bytes(manifest);
    mem->kv = artifact_kv_spec(art);
    if (a->json) {
        json_t *o = artifact_json(a, art, &m, mem, manifest);
        if (o && a->memory_table)
            TRY_OUT(add_table(o, mem, rows, 2));
        TRY_OUT(print_json(o));
        goto out;
    }
    printf("%s: artifact, %.1f MB, by %s\n", a->pos.item[0], MB * (double)m.total_bytes,
           json_string_value(json_object_get(manifest, "product")));
    print_arch(mem->arch, mem->arch->max_positions);
    TRY_OUT(print_spec(a, art, &m));
    print_memory(mem);
    if (a->memory_table)
        memory_print(mem->arch, rows, 2, &mem->batch, &mem->length);
    if (a->tensors)
        TRY_OUT(print_manifest_tensors(manifest));
out:
    json_decref(manifest);
    artifact_close(&art);
    return err;
}

/* --- checkpoint --------------------------------------------------------------------- */

static double plain_bits(const struct inspect_contents *c)
{
    return c->weights ? 8.0 * (double)c->bytes / (double)c->weights : 0.0;
}

/* An open checkpoint. packed: another tool quantized it. */
struct checkpoint {
    struct hf_model *m;
    struct inspect_contents c;
    bool packed;
    struct recipe formats; /* the packed weights' */
    struct inspect_packed p;
};

static enum err measure_packed(struct checkpoint *c, const char *dir)
{
    struct inspect_packed *p = &c->p;
    if (!hf_packed(&p->found, c->m))
        return OK;
    c->packed = true;
    recipe_init(&c->formats);
    TRY(recipe_take_formats(&c->formats, c->m, dir));
    p->weights = recipe_weight_spec(&c->formats);
    p->sizes = (struct artifact_sizes){.total_bytes = hf_bytes(c->m),
                                       .quantized_bytes = p->found.bytes,
                                       .other_bytes = hf_bytes(c->m) - p->found.bytes,
                                       .quantized_weights = p->found.weights,
                                       .weight_bits = 8.0 * (double)p->found.bytes /
                                                      (double)p->found.weights};
    return OK;
}

/* Opens it as what it is; what reading packed weights would change is not said. */
static enum err open_checkpoint(struct checkpoint *c, const char *dir)
{
    bool packed = false;
    enum err err = hf_open(&c->m, dir);
    if (err == ERR_SUPPORT && !hf_is_packed(&packed, dir) && packed) {
        err_clear();
        err = hf_open_packed(&c->m, dir, "wkvq inspect reads it as it is");
    }
    TRY(err);
    c->c = inspect_contents(c->m);
    TRY(measure_packed(c, dir));
    c->c.bytes += c->p.found.bytes;
    return OK;
}

static enum err checkpoint_json(json_t **out, const struct args *a,
                                const struct checkpoint *c, const struct memory *mem)
{
    json_t *packed = NULL;
    if (c->packed)
        TRY(inspect_packed_json(&packed, hf_arch(c->m), &c->p));
    json_t *o = json_pack(
        "{s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o*}", "kind", "checkpoint",
        "path", a->pos.item[0], "model", arch_json(hf_arch(c->m)), "tensors_count",
        (json_int_t)c->c.stored, "tensors_count_read", (json_int_t)c->c.read, "weights",
        (json_int_t)c->c.weights, "total_bytes", (json_int_t)hf_bytes(c->m), "weight_bits",
        c->packed ? c->p.sizes.weight_bits : plain_bits(&c->c), "kv_bits", 16.0, "memory",
        memory_json(mem), "quantization", packed);
    if (o && c->packed &&
        (json_object_set_new(o, "quantized_weights", json_integer(c->p.found.weights)) ||
         json_object_set_new(o, "quantized_bytes",
                             json_integer((json_int_t)c->p.found.bytes)))) {
        json_decref(o);
        o = NULL;
    }
    if (o && a->tensors && !inspect_add_tensors(o, c->m)) {
        json_decref(o);
        o = NULL;
    }
    *out = o;
    return OK;
}

static enum err print_checkpoint(const struct args *a, const struct checkpoint *c,
                                 const struct memory *mem)
{
    const struct arch *arch = mem->arch;
    printf("%s: checkpoint, %.1f MB, %" PRId64 " tensors\n", a->pos.item[0],
           MB * (double)hf_bytes(c->m), c->c.stored);
    print_arch(arch, arch->max_positions);
    inspect_print_reading(arch, &c->c);
    if (c->packed)
        TRY(inspect_print_packed(arch, &c->p, a->verbose || a->tensors));
    else
        printf("  weights    %.1f M, %.1f M of them in projections, %.4f bits per weight\n",
               1e-6 * (double)c->c.weights,
               1e-6 * (double)(arch_block_params(arch) * arch->n_layers),
               plain_bits(&c->c));
    print_memory(mem);
    if (a->memory_table)
        memory_print(arch, memory_rows, memory_n_rows, &mem->batch, &mem->length);
    if (a->tensors)
        inspect_print_tensors(c->m);
    return OK;
}

static enum err inspect_checkpoint(const struct args *a, struct memory *mem)
{
    enum err err = OK;
    struct checkpoint c = {0};
    TRY_OUT(open_checkpoint(&c, a->pos.item[0]));
    mem->arch = hf_arch(c.m);
    mem->weights = c.c.bytes;
    mem->kv = &full_cache;
    if (a->json) {
        json_t *o;
        TRY_OUT(checkpoint_json(&o, a, &c, mem));
        if (o && a->memory_table)
            TRY_OUT(add_table(o, mem, memory_rows, memory_n_rows));
        err = print_json(o);
    } else {
        err = print_checkpoint(a, &c, mem);
    }
out:
    recipe_free(&c.formats);
    hf_close(&c.m);
    return err;
}

/* --- state -------------------------------------------------------------------------- */

static enum err state_blocks_json(json_t *list, const struct state *s)
{
    for (int64_t i = 0; i < state_done(s); i++) {
        struct calib_block_stats b;
        TRY(state_stats(&b, s, i));
        FAIL_IF(json_array_append_new(
                    list, json_pack("{s:I, s:f, s:f, s:I}", "block", (json_int_t)i,
                                    "start_loss", b.start_loss, "best_loss", b.best_loss,
                                    "best_epoch", (json_int_t)b.best_epoch)),
                ERR_MEMORY, "out of memory for the report");
    }
    return OK;
}

static enum err print_state(const struct args *a, const struct state *s)
{
    printf("%s: calibration, %" PRId64 " of %" PRId64 " block%s done, %.1f MB\n",
           a->pos.item[0], state_done(s), state_blocks(s), plural(state_blocks(s)),
           MB * (double)state_bytes(s));
    for (int64_t i = 0; i < state_done(s); i++) {
        struct calib_block_stats b;
        TRY(state_stats(&b, s, i));
        printf("  block %3" PRId64 "  loss %.6g -> %.6g", i, b.start_loss, b.best_loss);
        if (b.best_epoch)
            printf(" after epoch %" PRId64 "\n", b.best_epoch);
        else
            printf(" (kept its start)\n");
    }
    if (state_refined(s)) {
        struct state_refinement r;
        TRY(state_refinement(&r, s));
        printf("  refined    divergence %.6g -> %.6g nats, step %" PRId64 " of %" PRId64
               "\n",
               r.start, r.best, r.best_step, r.steps);
    }
    return OK;
}

static enum err inspect_state(const struct args *a)
{
    enum err err = OK;
    struct state *s = NULL;
    json_t *blocks = json_array(), *refinement = NULL;
    TRY_OUT(state_open_read(&s, a->pos.item[0], NULL));
    if (!a->json) {
        err = print_state(a, s);
        goto out;
    }
    TRY_OUT(state_blocks_json(blocks, s));
    if (state_refined(s)) {
        struct state_refinement r;
        TRY_OUT(state_refinement(&r, s));
        refinement = state_refinement_json(&r);
    }
    TRY_OUT(print_json(json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:O, s:O, s:O*}", "kind", "state", "path",
        a->pos.item[0], "blocks", (json_int_t)state_blocks(s), "done",
        (json_int_t)state_done(s), "total_bytes", (json_int_t)state_bytes(s), "identity",
        state_identity(s), "block_stats", blocks, "refinement", refinement)));
out:
    json_decref(refinement);
    json_decref(blocks);
    state_close(&s);
    return err;
}

/* --- a shape ------------------------------------------------------------------------ */

static enum err inspect_shape(const struct args *a, struct memory *mem)
{
    struct arch arch;
    TRY(arch_of_shape(&arch, a->shape));
    mem->arch = &arch;
    if (a->json) {
        json_t *o = json_pack("{s:s, s:s, s:o}", "kind", "shape", "shape", a->shape,
                              "model", arch_json(&arch));
        if (o)
            TRY(add_table(o, mem, memory_rows, memory_n_rows));
        return print_json(o);
    }
    printf("%s\n", a->shape);
    print_arch(&arch, 0);
    memory_print(&arch, memory_rows, memory_n_rows, &mem->batch, &mem->length);
    return OK;
}

static enum err run(struct args *a)
{
    struct memory mem = {0};
    bool artifact, state;
    TRY(memory_open(&mem, a));
    FAIL_IF(!a->shape == !a->pos.n, ERR_USAGE, "want either DIR or --shape");
    if (a->shape)
        return inspect_shape(a, &mem);
    TRY(artifact_is(&artifact, a->pos.item[0]));
    if (artifact)
        return inspect_artifact(a, &mem);
    TRY(state_is(&state, a->pos.item[0]));
    if (state)
        return inspect_state(a);
    return inspect_checkpoint(a, &mem);
}

const struct command cmd_inspect = {
    .name = "inspect",
    .operands = "[DIR]",
    .summary = "Describe an artifact, a checkpoint or a calibration state",
    .details =
        "Sizes and bits are counted from the bytes on disk. Checksums of an artifact are "
        "checked by `wkvq verify`.\n\n"
        "  wkvq inspect OUT --batch 8 --length 4096\n"
        "  wkvq inspect --shape llama-2-13b --memory --batch 1,16 --length 2048,8192\n",
    .groups = groups,
    .min_pos = 0,
    .max_pos = 1,
    .model = 1,
    .run = run,
};
