/* SPDX-License-Identifier: MIT */
#include "convert/artifact/reader.h"

#include "convert/artifact/reader_check.h"
#include "convert/checkpoint/hf.h"
#include "convert/format/artifact_spec.h"
#include "convert/format/bitpack.h"
#include "convert/format/sizes.h"
#include "kernels/base/limits.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --- opening ------------------------------------------------------------------------ */

static enum err read_spec(struct artifact *a)
{
    enum err err = OK;
    char *path = NULL, where[600];
    json_t *o = NULL, *q = NULL;
    TRY(file_join(&path, a->dir, "config.json"));
    TRY_OUT(json_load_file_lenient(&o, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST));
    TRY_OUT(json_get_object(&q, o, "quantization_config", path));
    if (!q)
        FAIL_OUT(ERR_FORMAT, "%s: no quantization_config: not an artifact", path);
    snprintf(where, sizeof(where), "%.500s: quantization_config", path);
    TRY_OUT(spec_from_json(&a->weights, &a->kv, q, where));
out:
    json_decref(o);
    mem_free(path);
    return err;
}

/* Checks the settings against the architecture. */
static enum err check_spec(const struct artifact *a)
{
    const int64_t n = a->arch.n_layers;
    enum err err = kv_rotate_check(&a->kv, a->arch.head_dim);
    if (!err)
        err = kv_target_check(&a->kv, a->arch.head_dim);
    if (!err)
        err = mix_check_layers(a->weights.mixed, n, ERR_FORMAT, "weights.mixed");
    if (!err)
        err = mix_check_layers(a->kv.mixed, n, ERR_FORMAT, "kv.mixed");
    return err ? err_add(err, "%s/config.json: ", a->dir) : OK;
}

static bool is_tensor_file(const char *name)
{
    static const char end[] = ".safetensors";
    const size_t n = strlen(name), k = sizeof(end) - 1;
    return n >= k && !strcmp(name + n - k, end);
}

/* *yes = the tensor files need at most half of the available memory. Files of another size
 * than the manifest says are not copied, only opened and refused. */
static enum err have_room(bool *yes, const struct artifact *a)
{
    const struct manifest *m = a->manifest;
    uint64_t room = memory_available() / 2;
    *yes = true;
    for (size_t k = 0; k < m->n_files; k++) {
        char *path = NULL;
        if (!is_tensor_file(m->file[k].name))
            continue;
        TRY(file_join(&path, a->dir, m->file[k].name));
        const int64_t size = file_size(path);
        mem_free(path);
        *yes = *yes && size >= 0 && (uint64_t)size == m->file[k].bytes &&
               (uint64_t)size <= room;
        room -= *yes ? (uint64_t)size : 0;
    }
    return OK;
}

/* A process limit may make the copy fail: falls back to mmap. */
static enum err open_file(struct st_file **out, const char *path, bool load)
{
    const enum err err = load ? st_load(out, path) : st_open(out, path);
    if (!load || err != ERR_MEMORY)
        return err;
    err_clear();
    return st_open(out, path);
}

static enum err open_files(struct artifact *a, bool load)
{
    const struct manifest *m = a->manifest;
    if (load)
        TRY(have_room(&load, a));
    TRY(mem_calloc(&a->file, m->n_files, sizeof(struct st_file *)));
    for (size_t k = 0; k < m->n_files; k++) {
        char *path = NULL;
        if (!is_tensor_file(m->file[k].name))
            continue;
        TRY(file_join(&path, a->dir, m->file[k].name));
        const enum err err = open_file(&a->file[k], path, load);
        mem_free(path);
        if (err)
            return err;
    }
    return OK;
}

static enum err source_block(void *ctx, int64_t i, struct block_src *out);
static enum err source_ends(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                            struct host_mat *head);
static void source_release(void *ctx, int64_t i);

enum err artifact_open(struct artifact **out, const char *dir, unsigned how)
{
    enum err err = OK;
    struct artifact *a = NULL;
    TRY(mem_calloc(&a, 1, sizeof(*a)));
    TRY_OUT(mem_strdup(&a->dir, dir));
    TRY_OUT(manifest_open(&a->manifest, dir));
    TRY_OUT(reader_check_config(a));
    TRY_OUT(read_spec(a));
    TRY_OUT(hf_read_config(&a->arch, dir));
    TRY_OUT(check_spec(a));
    TRY_OUT(open_files(a, how & ARTIFACT_LOAD));
    TRY_OUT(reader_check_manifest(a, how & ARTIFACT_CHECK));
    TRY_OUT(reader_bind(a));
    if (how & ARTIFACT_CHECK)
        TRY_OUT(reader_check_finite(a));
    TRY_OUT(mem_calloc(&a->unpacked, (size_t)a->arch.n_layers, sizeof(float *)));
    a->source = (struct model_source){a, source_block, source_ends, source_release};
    *out = a;
    return OK;
out:
    artifact_close(&a);
    return err;
}

void artifact_close(struct artifact **pa)
{
    struct artifact *a = *pa;
    if (!a)
        return;
    for (size_t k = 0; a->file && k < a->manifest->n_files; k++)
        st_close(&a->file[k]);
    for (int64_t i = 0; a->unpacked && i < a->arch.n_layers; i++)
        mem_free(a->unpacked[i]);
    mem_free(a->unpacked);
    mem_free(a->unpacked_end[0]);
    mem_free(a->unpacked_end[1]);
    mem_free(a->file);
    mem_free(a->block);
    mem_free(a->channels);
    mem_free(a->memory);
    manifest_close(&a->manifest);
    spec_free(&a->weights, &a->kv);
    mem_free(a->dir);
    mem_free(a);
    *pa = NULL;
}

/* --- views -------------------------------------------------------------------------- */

const struct arch *artifact_arch(const struct artifact *a)
{
    return &a->arch;
}

const struct weight_spec *artifact_weight_spec(const struct artifact *a)
{
    return &a->weights;
}

const struct kv_spec *artifact_kv_spec(const struct artifact *a)
{
    return &a->kv;
}

const struct packed_block *artifact_block(const struct artifact *a, int64_t i)
{
    return &a->block[i];
}

const struct packed_linear *artifact_embed(const struct artifact *a)
{
    return &a->embed;
}

struct host_mat artifact_final_norm(const struct artifact *a)
{
    return a->final_norm;
}

const struct packed_linear *artifact_head(const struct artifact *a)
{
    return a->arch.tied ? &a->embed : &a->head;
}

const char *artifact_manifest(const struct artifact *a)
{
    return a->manifest->text;
}

int64_t artifact_tensor_count(const struct artifact *a)
{
    return (int64_t)a->manifest->n_tensors;
}

const struct st_tensor *artifact_tensor_at(const struct artifact *a, int64_t i)
{
    for (size_t k = 0; k < a->manifest->n_files; k++) {
        const int64_t n = a->file[k] ? st_count(a->file[k]) : 0;
        if (i < n)
            return st_at(a->file[k], i);
        i -= n;
    }
    return NULL;
}

const struct st_tensor *artifact_find(const struct artifact *a, const char *name)
{
    const char *file;
    return reader_find(a, name, &file);
}

void artifact_release(const struct artifact *a, const char *name)
{
    for (size_t k = 0; k < a->manifest->n_files; k++) {
        const struct st_tensor *t = a->file[k] ? st_find(a->file[k], name) : NULL;
        if (t)
            st_release(a->file[k], t);
    }
}

static uint16_t scale_at(const struct packed_linear *p, int64_t i)
{
    return (uint16_t)(p->scales[2 * i] | p->scales[2 * i + 1] << 8);
}

/* codes: copies the codes as well. */
static enum err copy_linear(struct qlinear *q, const struct packed_linear *p, bool codes)
{
    const int64_t code_bytes = bitpack_bytes(p->in, p->bits);
    const int64_t zero_bytes = bitpack_bytes(p->groups, p->bits);
    TRY(qlinear_alloc(q, p->out, p->in, (struct lin_format){p->bits, p->group_size}));
    if (codes)
        TRY(qlinear_alloc_codes(q));
    for (int64_t r = 0; r < p->out; r++) {
        if (codes)
            bitpack_unpack_row(q->codes + r * p->in, p->qweight + r * code_bytes, p->in,
                               p->bits);
        for (int64_t g = 0; g < p->groups; g++)
            q->scales[r * p->groups + g] = scale_at(p, r * p->groups + g);
        bitpack_unpack_row(q->zeros + r * p->groups, p->zeros + r * zero_bytes, p->groups,
                           p->bits);
    }
    return OK;
}

static enum err copy_gains(struct block_quant *q, const struct artifact *a, int64_t i)
{
    const struct packed_block *b = &a->block[i];
    for (int g = 0; g < N_GAINS; g++) {
        const size_t n = (size_t)arch_gain(&a->arch, i, (enum norm_gain)g);
        if (!n)
            continue;
        TRY(mem_alloc(&q->gain[g], n, sizeof(float)));
        const struct host_mat *from = g == GAIN_FINAL ? &a->final_norm : &b->norm[g];
        host_to_f32(q->gain[g], from->data, from->dtype, (int64_t)n);
    }
    return OK;
}

enum err artifact_block_quant(struct block_quant *out, const struct artifact *a, int64_t i)
{
    enum err err = OK;
    const struct packed_block *b = &a->block[i];
    struct block_quant q = {0};
    const int64_t channels = a->arch.n_kv * a->arch.head_dim;
    const size_t bytes = (size_t)channels * sizeof(float);
    TRY(block_quant_alloc(&q, channels));
    q.kv = a->kv;
    memcpy(q.k_scale, b->k_scale, bytes);
    memcpy(q.k_shift, b->k_shift, bytes);
    memcpy(q.v_scale, b->v_scale, bytes);
    memcpy(q.v_shift, b->v_shift, bytes);
    for (int l = 0; l < N_LIN; l++)
        if (b->lin[l].bits < 16)
            TRY_OUT(copy_linear(&q.lin[l], &b->lin[l], weight_chooses_codes(&a->weights)));
    if (a->weights.refined)
        TRY_OUT(copy_gains(&q, a, i));
    *out = q;
    return OK;
out:
    block_quant_free(&q);
    return err;
}

/* Codes unpacked at a time: a multiple of 8, so that each piece starts on a byte. */
#define UNPACK_PIECE 512

static void unpack_row(float *w, const struct packed_linear *p, int64_t r)
{
    const uint8_t *src = p->qweight + r * bitpack_bytes(p->in, p->bits);
    const uint8_t *zeros = p->zeros + r * bitpack_bytes(p->groups, p->bits);
    const int64_t step = p->group_size > 0 ? p->group_size : p->in;
    uint8_t codes[UNPACK_PIECE];
    for (int64_t c = 0; c < p->in; c += UNPACK_PIECE) {
        const int64_t n = p->in - c < UNPACK_PIECE ? p->in - c : UNPACK_PIECE;
        bitpack_unpack_row(codes, src + c / 8 * p->bits, n, p->bits);
        for (int64_t i = 0; i < n;) {
            const int64_t g = (c + i) / step, left = (g + 1) * step - (c + i);
            const int64_t end = left < n - i ? i + left : n;
            const int64_t bit = g * p->bits;
            const unsigned pair =
                zeros[bit / 8] |
                (bit % 8 + p->bits > 8 ? (unsigned)zeros[bit / 8 + 1] << 8 : 0);
            const uint8_t z = (uint8_t)(pair >> bit % 8 & ((1u << p->bits) - 1));
            const float h = f16_to_f32(scale_at(p, r * p->groups + g));
            for (; i < end; i++)
                w[c + i] = quant_weight_value(codes[i], z, h);
        }
    }
}

void packed_linear_unpack_row(float *w, const struct packed_linear *p, int64_t row)
{
    if (p->bits == 16)
        host_to_f32(w, host_mat_row(&p->w, row), p->w.dtype, p->in);
    else
        unpack_row(w, p, row);
}

struct packed_linear packed_linear_rows(const struct packed_linear *p, int64_t first,
                                        int64_t n)
{
    struct packed_linear rows = *p;
    rows.out = n;
    rows.bias = (struct host_mat){0};
    if (p->bits == 16) {
        rows.w.data = host_mat_row(&p->w, first);
        rows.w.part = NULL;
        rows.w.rows = n;
        return rows;
    }
    rows.qweight += first * bitpack_bytes(p->in, p->bits);
    rows.scales += 2 * first * p->groups;
    rows.zeros += first * bitpack_bytes(p->groups, p->bits);
    return rows;
}

void packed_linear_unpack(float *w, const struct packed_linear *p)
{
    for (int64_t r = 0; r < p->out; r++)
        packed_linear_unpack_row(w + r * p->in, p, r);
}

/* --- the dequantized weights as a source --------------------------------------------- */

/* Returns the elements of projection l to dequantize; unquantized ones are used in
 * place. */
static int64_t unpacked_count(const struct packed_block *b, int l)
{
    return b->lin[l].bits < 16 ? b->lin[l].out * b->lin[l].in : 0;
}

static enum err unpack_block(struct artifact *a, int64_t i)
{
    const struct packed_block *b = &a->block[i];
    int64_t n = 0;
    if (a->unpacked[i])
        return OK;
    for (int l = 0; l < N_LIN; l++)
        n += unpacked_count(b, l);
    TRY(mem_alloc(&a->unpacked[i], (size_t)n, sizeof(float)));
    float *w = a->unpacked[i];
    for (int l = 0; l < N_LIN; w += unpacked_count(b, l), l++)
        if (b->lin[l].bits < 16)
            packed_linear_unpack(w, &b->lin[l]);
    return OK;
}

static enum err source_block(void *ctx, int64_t i, struct block_src *out)
{
    struct artifact *a = ctx;
    FAIL_IF(i < 0 || i >= a->arch.n_layers, ERR_SHAPE, "block %" PRId64 " of %" PRId64, i,
            a->arch.n_layers);
    const struct packed_block *b = &a->block[i];
    struct block_src s = {0};
    TRY(unpack_block(a, i));
    memcpy(s.norm, b->norm, sizeof(s.norm));
    s.router = b->router;
    const float *w = a->unpacked[i];
    for (int l = 0; l < N_LIN; w += unpacked_count(b, l), l++) {
        s.lin[l] = b->lin[l].w;
        if (b->lin[l].bits < 16) {
            s.lin[l].data = w;
            s.lin[l].dtype = DT_F32;
        }
        s.bias[l] = b->lin[l].bias;
    }
    *out = s;
    return OK;
}

/* *out = embedding (0) or head (1); dequantized at the first call. */
static enum err unpack_end(struct host_mat *out, struct artifact *a, int which)
{
    const struct packed_linear *p = which ? &a->head : &a->embed;
    *out = p->w;
    if (p->bits == 16)
        return OK;
    if (!a->unpacked_end[which]) {
        const int64_t dims[] = {p->out, p->in};
        size_t bytes;
        TRY(size_product(&bytes, dims, 2, sizeof(float)));
        TRY(mem_alloc(&a->unpacked_end[which], bytes, 1));
        packed_linear_unpack(a->unpacked_end[which], p);
    }
    out->data = a->unpacked_end[which];
    out->dtype = DT_F32;
    return OK;
}

static enum err source_ends(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                            struct host_mat *head)
{
    struct artifact *a = ctx;
    TRY(unpack_end(embed, a, 0));
    *final_norm = a->final_norm;
    if (a->arch.tied)
        *head = *embed;
    else
        TRY(unpack_end(head, a, 1));
    return OK;
}

static void source_release(void *ctx, int64_t i)
{
    struct artifact *a = ctx;
    mem_free(a->unpacked[i]);
    a->unpacked[i] = NULL;
}

const struct model_source *artifact_source(struct artifact *a)
{
    return &a->source;
}

/* --- sizes -------------------------------------------------------------------------- */

uint64_t artifact_kv_bytes(const struct artifact *a, int64_t batch, int64_t tokens)
{
    return kv_cache_bytes(&a->arch, &a->kv, batch, tokens);
}

uint64_t packed_linear_bytes(const struct packed_linear *p)
{
    if (p->bits == 16)
        return (uint64_t)(p->out * p->in) * dtype_bytes(p->w.dtype);
    return shape_linear_bytes(p->out, p->in, (struct lin_format){p->bits, p->group_size});
}

void artifact_measure(struct artifact_sizes *out, const struct artifact *a)
{
    struct artifact_sizes s = {.total_bytes = a->manifest->bytes};
    for (size_t k = 0; k < a->manifest->n_files; k++)
        s.total_bytes += a->manifest->file[k].bytes;
    for (int64_t i = 0; i < a->arch.n_layers; i++)
        for (int l = 0; l < N_LIN; l++) {
            const struct packed_linear *p = &a->block[i].lin[l];
            s.quantized_bytes += packed_linear_bytes(p);
            s.quantized_weights += p->out * p->in;
        }
    s.other_bytes = s.total_bytes - s.quantized_bytes;
    s.weight_bits = 8.0 * (double)s.quantized_bytes / (double)s.quantized_weights;
    s.kv_bits = kv_mean_bits(&a->arch, &a->kv);
    s.head_bytes =
        packed_linear_bytes(&a->embed) + (a->arch.tied ? 0 : packed_linear_bytes(&a->head));
    s.head_bits = 8.0 * (double)s.head_bytes /
                  ((double)(a->embed.out * a->embed.in) * (a->arch.tied ? 1 : 2));
    *out = s;
}
