/* SPDX-License-Identifier: MIT
 *
 * The loop over blocks. Streams hold one hidden state per sample at some depth:
 *
 *   x         input of block b in the quantized model
 *   target    outputs of full-precision blocks b .. b + k, compared in the loss
 *
 * For each block: load weights, set start values (from its own keys, values and inputs),
 * train, hand the result over, and move every stream on by one block. */
#include "calib/calib.h"

#include "calib/calibration.h"
#include "calib/cost.h"
#include "calib/model/ends.h"
#include "calib/model/model.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "kernels/dev_engine.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- settings ----------------------------------------------------------------------- */

static enum err check_bits(const char *key, int bits)
{
    FAIL_IF(!quant_bits_setting_ok(bits), ERR_USAGE,
            "%s is %d, want 2 to 8, or 16 for no quantization", key, bits);
    return OK;
}

static enum err check_count(const char *key, int64_t value, int64_t lo, int64_t hi)
{
    FAIL_IF(value < lo || value > hi, ERR_USAGE,
            "%s is %" PRId64 ", want %" PRId64 " to %" PRId64, key, value, lo, hi);
    return OK;
}

static enum err check_damp(double damp, double lo, double hi)
{
    FAIL_IF(!(damp >= lo && damp <= hi), ERR_USAGE, "weights.damp is %g, want %g to %g",
            damp, lo, hi);
    return OK;
}

static enum err check_formats(const struct arch *a, const struct calib_settings *s)
{
    TRY(check_bits("weights.bits", s->weights.bits));
    TRY(check_count("weights.group_size", s->weights.group_size, RANGE_WEIGHT_GROUP));
    if (s->weights.scale_bits) /* 0: all */
        TRY(check_count("weights.scale_bits", s->weights.scale_bits, RANGE_SCALE_BITS));
    TRY(mix_check_layers(s->weights.mixed, a->n_layers, ERR_USAGE, "weights.mixed"));
    TRY(check_bits("head.bits", head_format(&s->weights).bits));
    TRY(check_count("head.group_size", s->weights.head_group, RANGE_WEIGHT_GROUP));
    TRY(check_damp(s->gptq.damp, RANGE_DAMP));
    TRY(check_bits("kv.bits", s->kv.bits));
    TRY(check_count("kv.group_size", s->kv.group_size, RANGE_KV_GROUP));
    TRY(mix_check_layers(s->kv.mixed, a->n_layers, ERR_USAGE, "kv.mixed"));
    TRY(kv_rotate_check(&s->kv, a->head_dim));
    TRY(kv_target_check(&s->kv, a->head_dim));
    TRY(check_count("kv.window", s->kv.window, RANGE_WINDOW));
    TRY(check_count("kv.sink", s->kv.sink, RANGE_SINK));
    return check_bits("activations.bits",
                      s->weights.act_bits ? s->weights.act_bits : QUANT_BITS_NONE);
}

static enum err check_settings(const struct arch *a, const struct calib_settings *s,
                               int64_t first_block)
{
    TRY(check_count("calibration.samples", s->samples, RANGE_SAMPLES));
    TRY(check_count("calibration.seqlen", s->seqlen, RANGE_SEQLEN));
    TRY(arch_check_length(a, s->seqlen));
    TRY(check_count("calibration.epochs", s->epochs, RANGE_EPOCHS));
    TRY(check_count("calibration.batch", s->batch, RANGE_BATCH));
    FAIL_IF(s->batch > s->samples, ERR_USAGE,
            "calibration.batch is %" PRId64 ", but calibration.samples is %" PRId64,
            s->batch, s->samples);
    TRY(check_count("calibration.eval_samples", s->eval_samples, RANGE_EVAL_SAMPLES));
    TRY(check_count("crr.blocks", s->crr_blocks, RANGE_CRR_BLOCKS));
    TRY(check_formats(a, s));
    FAIL_IF(first_block < 0 || first_block > a->n_layers, ERR_SHAPE,
            "first block %" PRId64 " of %" PRId64, first_block, a->n_layers);
    return OK;
}

/* --- streams ------------------------------------------------------------------------ */

static enum err open_streams(struct calibration *c)
{
    const struct calib_settings *s = c->s;
    struct calib_settings own = *s; /* with this process's samples */
    size_t one;
    char name[32];
    own.samples = share_count(&c->share, s->samples);
    TRY(stream_bytes(&one, c->arch, &own));
    const enum stream_place place =
        stream_place_of(s, (double)one * (double)(c->n_targets + 1));
    TRY(mem_calloc(&c->target, (size_t)c->n_targets, sizeof(*c->target)));
    TRY(stream_open(&c->x, c->io, c->dev, c->arch, &own, "quantized", place));
    for (int64_t j = 0; j < c->n_targets; j++) {
        snprintf(name, sizeof(name), "target-%" PRId64, j);
        TRY(stream_open(&c->target[j], c->io, c->dev, c->arch, &own, name, place));
    }
    return OK;
}

static enum err open_calibration(struct calibration *c)
{
    TRY(share_open(&c->share, c->io->ranks, c->s->batch, c->s->samples,
                   "calibration.batch"));
    TRY(fakequant_open(&c->fq, c->dev, c->arch, c->s));
    TRY(recon_open(&c->recon, c->dev, c->arch, c->s));
    if (calib_searches_weights(c->s))
        TRY(search_open(&c->search, c->dev, c->arch, c->s, &c->share));
    if (calib_searches_kv(c->s))
        TRY(kv_search_open(&c->kv_search, c->dev, c->arch));
    if (c->fq.gptq || c->fq.gptq_start)
        TRY(gptq_open(&c->gptq, c->dev, c->arch, c->s));
    c->n_targets = c->s->crr_terms == TERMS_ALL ? c->recon.depth + 1 : 1;
    TRY(late_open(c));
    TRY(open_streams(c));
    return share_link(&c->share, c->dev, fakequant_gradients_most(c->arch, c->s),
                      block_later_bytes(c->arch, c->s->seqlen, c->s->act));
}

static void close_calibration(struct calibration *c)
{
    late_close(c);
    stream_close(&c->x);
    for (int64_t j = 0; c->target && j < c->n_targets; j++)
        stream_close(&c->target[j]);
    mem_free(c->target);
    fakequant_close(&c->fq);
    recon_close(&c->recon);
    gptq_close(&c->gptq);
    search_close(&c->search);
    kv_search_close(&c->kv_search);
    share_close(&c->share);
}

/* Several ranks agree to stop only when all have passed their samples. */
static enum err step_done(struct calibration *c, enum calib_event_kind kind, double units)
{
    c->units_done = units;
    calib_notify(c, kind, 0);
    return calib_stopped_if(c, !c->share.ranks && calib_stop_asked(c));
}

static enum err pass_done(struct calibration *c, double units)
{
    c->units_done = units;
    return c->share.ranks ? calib_stopped_if(c, share_any(&c->share, calib_stop_asked(c)))
                          : OK;
}

/* Fills a stream with the samples' rows of an embedding. */
static enum err embed_stream(struct calibration *c, struct stream *to,
                             const struct host_mat *embed)
{
    for (int64_t i = 0; i < c->s->samples; i++) {
        if (!share_own(&c->share, i))
            continue;
        TRY(model_embed(c->dev, c->arch, &c->recon.x, embed, c->tokens + i * c->s->seqlen));
        TRY(stream_write(to, share_local(&c->share, i), &c->recon.x));
    }
    return OK;
}

/* The embedding as the quantized model has it. */
static enum err embed_quantized(struct calibration *c, const struct host_mat *embed)
{
    struct pool *p = NULL;
    struct host_mat values;
    TRY(pool_open(&p, dev_threads(c->dev)));
    enum err err = ends_values(&values, p, embed, head_format(&c->s->weights));
    pool_close(&p);
    if (err)
        return err;
    err = embed_stream(c, &c->x, &values);
    ends_free(&values, embed);
    return err;
}

/* Both streams start at the embedding, the output of "block -1". */
static enum err embed_samples(struct calibration *c)
{
    const struct model_source *full = source_full(c->src);
    struct host_mat embed, norm, head;
    TRY(full->ends(full->ctx, &embed, &norm, &head));
    TRY(embed_stream(c, calib_target(c, -1), &embed));
    TRY(c->src->ends(c->src->ctx, &embed, &norm, &head));
    return embed_quantized(c, &embed);
}

/* Computes the outputs of full-precision block b from those of block b - 1. */
static enum err move_target(struct calibration *c, int64_t b, enum calib_event_kind kind)
{
    const struct block_weights *w;
    const struct tensor *out;
    const double units = c->units_done + (double)c->s->samples;
    TRY(recon_full(&c->recon, &w, c->src, b));
    for (int64_t i = 0; i < c->x.samples; i++) {
        c->sample = i;
        TRY(stream_read(calib_target(c, b - 1), &c->recon.x, i));
        TRY(stream_prefetch(calib_target(c, b - 1), i + 1));
        TRY(recon_plain(&c->recon, w, NULL, &out));
        TRY(stream_write(calib_target(c, b), i, out));
        TRY(step_done(c, kind, c->units_done + 1));
    }
    return pass_done(c, units);
}

/* Moves the quantized stream through the block in work as it is quantized now. */
static enum err move_quantized(struct calibration *c, enum calib_event_kind kind)
{
    const struct tensor *out;
    const double units = c->units_done + (double)c->s->samples;
    for (int64_t i = 0; i < c->x.samples; i++) {
        c->sample = i;
        TRY(stream_read(&c->x, &c->recon.x, i));
        TRY(stream_prefetch(&c->x, i + 1));
        TRY(recon_quantized(&c->recon, &c->fq, &out));
        TRY(stream_write(&c->x, i, out));
        TRY(step_done(c, kind, c->units_done + 1));
    }
    return pass_done(c, units);
}

/* c->recon.x = sample i of the quantized stream, which this rank has. */
static enum err read_own(struct calibration *c, int64_t i)
{
    const int64_t at = share_local(&c->share, i);
    TRY(stream_read(&c->x, &c->recon.x, at));
    return stream_prefetch(&c->x, at + 1);
}

static enum err load_block(struct calibration *c)
{
    struct block_src src;
    TRY(c->src->block(c->src->ctx, c->block, &src));
    TRY(fakequant_load(&c->fq, &src, c->block));
    source_drop(c->src, c->block);
    return OK;
}

/* Moves the quantized stream through a block that an earlier run finished. */
static enum err replay_block(struct calibration *c)
{
    struct block_quant q = {0};
    TRY(load_block(c));
    TRY(c->io->load_block(c->io->ctx, c->block, &q));
    const enum err err = fakequant_import(&c->fq, &q);
    block_quant_free(&q);
    return err ? err : move_quantized(c, CALIB_PREPARE);
}

static void release_block(struct calibration *c, int64_t b)
{
    const struct model_source *full = source_full(c->src);
    if (c->src->release && b >= 0)
        c->src->release(c->src->ctx, b);
    if (full != c->src && full->release && b >= 0)
        full->release(full->ctx, b);
}

/* Starts reading what the next block needs while this one trains: its own weights again,
 * and those of one more block at the end of the chain. */
static void prefetch_next(const struct calibration *c)
{
    const int64_t next = c->block + 1, last = next + c->recon.depth;
    const struct model_source *full = source_full(c->src);
    if (c->src->prefetch && next < c->arch->n_layers)
        c->src->prefetch(c->src->ctx, next);
    if (full->prefetch && last > next && last < c->arch->n_layers)
        full->prefetch(full->ctx, last);
}

/* Brings the streams to where they are before block `first`. */
static enum err fill_streams(struct calibration *c, int64_t first)
{
    TRY(embed_samples(c));
    for (int64_t b = 0; b <= first + recon_reach(&c->recon, first); b++) {
        TRY(move_target(c, b, CALIB_PREPARE));
        if (b < first)
            release_block(c, b);
    }
    for (c->block = 0; c->block < first; c->block++) {
        TRY(replay_block(c));
        release_block(c, c->block);
    }
    return OK;
}

/* --- start values ------------------------------------------------------------------- */

/* Computes keys and values of this process's samples in full precision and calls add(), which finds
 * them in the activations. kv is NULL if another process has the sample. */
static enum err scan_kv(struct calibration *c,
                        enum err (*add)(struct calibration *c, const struct block_kv *kv,
                                        void *ctx),
                        void *ctx)
{
    const double scan = cost_scan_passes(c->arch, c->s->seqlen), units = c->units_done;
    struct block_kv plain = {.spec = c->s->kv, .layer = c->block, .scale = {1, 1}};
    plain.spec.method = KV_TOKEN;
    plain.spec.past_only = true;
    plain.spec.window = 1;
    plain.spec.sink = 0;
    for (int64_t i = 0; i < c->s->samples; i++) {
        const bool own = share_own(&c->share, i);
        c->sample = i;
        if (own) {
            TRY(read_own(c, i));
            TRY(recon_cache(&c->recon, &c->fq.wq, &plain));
        }
        TRY(add(c, own ? &plain : NULL, ctx));
        if (own)
            TRY(step_done(c, CALIB_SCAN, units + (double)(i + 1) * scan));
    }
    return pass_done(c, units + (double)c->s->samples * scan);
}

/* Returns the values of the last forward pass. Those for a cache that values can be folded for are
 * its own rotated channels, for which smoothing and shift are; they replace vq. */
static enum err values_to_smooth(struct calibration *c, const struct block_kv *kv,
                                 struct tensor *out)
{
    const struct block_acts *x = &c->recon.acts[0];
    const struct tensor v = block_values(x, c->arch);
    *out = v;
    if (!kv_target_folds(kv->spec.target))
        return OK;
    *out = x->vq;
    TRY(dev_copy(c->dev, out, &v));
    const struct tensor parts = tensor_heads(*out, out->dim[1] / KV_TARGET_V_ROTATION);
    return dev_hadamard(c->dev, &parts);
}

/* Updates range [4][K*d] on the device: minima and maxima of K (where it is quantized),
 * then of V. */
static enum err add_range(struct calibration *c, const struct block_kv *kv, void *ctx)
{
    const struct tensor *range = ctx;
    struct tensor v;
    if (!kv)
        return OK;
    const struct tensor k = block_keys(&c->recon.acts[0], c->arch, &kv->spec);
    TRY(values_to_smooth(c, kv, &v));
    TRY(dev_col_minmax(c->dev, &range[0], &range[1], &k));
    return dev_col_minmax(c->dev, &range[2], &range[3], &v);
}

/* host [4][C] = the ranges over the samples of all processes. A minimum does not depend on the
 * order of samples once zeros have one sign. */
static enum err join_ranges(struct calibration *c, float *host, int64_t C)
{
    const struct ranks *r = c->share.ranks;
    float *all = NULL;
    const int64_t n = 4 * C, ranks = r ? r->size : 0;
    if (r) {
        TRY(mem_alloc(&all, (size_t)(ranks * n), sizeof(*all)));
        r->gather(all, host, (size_t)n * sizeof(*host));
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t q = 0; q < ranks; q++) {
            const float x = all[q * n + i];
            if (isnan(x) || (i / C % 2 ? x > host[i] : x < host[i]))
                host[i] = x;
        }
        host[i] += 0.0f;
    }
    mem_free(all);
    return OK;
}

/* host [4][C] = the ranges over all samples. */
static enum err scan_to_host(struct calibration *c, float *host, int64_t C)
{
    void *memory = NULL;
    struct tensor range[4];
    const size_t bytes = 4 * (size_t)C * sizeof(float);
    TRY(dev_alloc(c->dev, &memory, bytes));
    for (int64_t i = 0; i < 4 * C; i++)
        host[i] = i / C % 2 ? -INFINITY : INFINITY;
    enum err err = dev_upload(c->dev, memory, host, bytes);
    for (int64_t i = 0; i < 4; i++)
        range[i] = tensor_1d((float *)memory + i * C, DT_F32, C);
    if (!err)
        err = scan_kv(c, add_range, range);
    if (!err)
        err = dev_download(c->dev, host, memory, bytes);
    dev_free(c->dev, memory);
    return err ? err : join_ranges(c, host, C);
}

static enum err check_range(const struct calibration *c, const float *host, int64_t C)
{
    for (int64_t i = 0; i < 4 * C; i++)
        FAIL_IF(!isfinite(host[i]), ERR_NUMERIC,
                "block %" PRId64 ": %s are not finite in full precision; check the "
                "checkpoint's values in this block",
                c->block, i < 2 * C ? "keys" : "values");
    return OK;
}

static enum err add_errors(struct calibration *c, const struct block_kv *kv, void *ctx)
{
    if (kv)
        TRY(kv_search_measure(ctx, &c->recon.acts[0], kv));
    return kv_search_add(ctx, &c->share, c->sample, c->s->samples);
}

/* Chooses the smoothing exponents of K and V; range [4][C] as add_range has it. */
static enum err choose_alpha(struct calibration *c, float alpha[2], const float *range,
                             int64_t C)
{
    const float *const mn[] = {range, range + 2 * C}, *const mx[] = {range + C,
                                                                     range + 3 * C};
    alpha[KV_K] = alpha[KV_V] = KV_ALPHA;
    if (!c->kv_search.dev)
        return OK;
    TRY(kv_search_begin(&c->kv_search, mn, mx));
    TRY(scan_kv(c, add_errors, &c->kv_search));
    kv_search_finish(alpha, &c->kv_search);
    return OK;
}

static enum err start_values(struct calibration *c)
{
    const int64_t C = c->arch->n_kv * c->arch->head_dim;
    float *host = NULL, alpha[2];
    if (!calib_kv_passes(c->s, c->block))
        return fakequant_start(&c->fq, NULL, NULL, NULL, NULL, NULL);
    TRY(mem_alloc(&host, 4 * (size_t)C, sizeof(*host)));
    enum err err = scan_to_host(c, host, C);
    if (!err)
        err = check_range(c, host, C);
    if (!err)
        err = choose_alpha(c, alpha, host, C);
    if (!err)
        err = fakequant_start(&c->fq, host, host + C, host + 2 * C, host + 3 * C, alpha);
    mem_free(host);
    return err;
}

/* --- from the inputs of projections --------------------------------------------------- */

/* Adds the inputs of sample i: to GPTQ's products, of which every rank has all samples, and to the
 * moments of the search of the clipping. */
static enum err add_inputs(struct calibration *c, int64_t i)
{
    const struct tensor *out;
    const bool own = share_own(&c->share, i), reads = own || c->gptq.dev;
    if (own)
        TRY(read_own(c, i));
    if (c->gptq.dev)
        TRY(share_sample(&c->share, c->dev, &c->recon.x, i));
    if (reads)
        TRY(recon_plain(&c->recon, &c->fq.wq, NULL, &out));
    if (c->search.dev)
        TRY(search_add(&c->search, &c->recon.acts[0], i));
    if (c->gptq.dev)
        TRY(gptq_add(&c->gptq, &c->recon.acts[0]));
    return reads ? step_done(c, CALIB_PREPARE, c->units_done + 1) : OK;
}

/* Collects the second moments of the projections' inputs, from the full-precision block on
 * the quantized stream: for GPTQ and for the search of the clipping. */
static enum err gather_inputs(struct calibration *c)
{
    const double units = c->units_done + (double)c->s->samples;
    if (c->search.dev)
        search_begin(&c->search);
    if (c->gptq.dev)
        TRY(gptq_begin(&c->gptq));
    for (int64_t i = 0; i < c->s->samples; i++) {
        c->sample = i;
        TRY(add_inputs(c, i));
    }
    return pass_done(c, units);
}

/* GPTQ chooses codes or start offsets; the next apply uses them. */
static enum err choose_codes(struct calibration *c)
{
    const enum err err =
        gptq_finish(&c->gptq, &c->fq, c->fq.gptq_start ? NULL : c->at.stats.unreached);
    return err ? err_add(err, "block %" PRId64 ", ", c->block) : OK;
}

/* Sets the start values of all that learns. */
static enum err start_block(struct calibration *c)
{
    if (!c->fq.gptq && calib_gathers(c->s, c->block))
        TRY(gather_inputs(c));
    TRY(start_values(c));
    if (c->search.dev)
        TRY(search_finish(&c->search, &c->fq));
    return c->fq.gptq_start && calib_gathers(c->s, c->block) ? choose_codes(c) : OK;
}

/* --- one block ---------------------------------------------------------------------- */

static enum err hand_over(struct calibration *c)
{
    struct block_quant q = {0};
    TRY(fakequant_export(&c->fq, &q));
    const enum err err = c->io->save_block(c->io->ctx, c->block, &q, &c->at.stats);
    block_quant_free(&q);
    return err;
}

static enum err calibrate_block(struct calibration *c)
{
    const struct block_cost cost = cost_of_block(c->arch, c->s, c->block);
    const double units = c->units_done + cost_block_passes(&cost);
    bool restored = false;
    c->at = (struct block_position){.stats = {.block = c->block}};
    c->clock = clock_s();
    dev_gemm_seconds(c->dev, true);
    TRY(load_block(c));
    prefetch_next(c);
    if (c->fq.gptq && calib_gathers(c->s, c->block)) {
        TRY(gather_inputs(c));
        TRY(choose_codes(c));
    }
    if (calib_learns(c->s, c->block))
        TRY(calib_load_partial(c, &restored));
    if (!restored)
        TRY(start_block(c));
    else
        c->units_done += c->units_restored = calib_units_done(c);
    TRY(calib_train_block(c));
    c->units_done = units;
    calib_take_time(c);
    TRY(hand_over(c));
    c->n_finished = c->block + 1;
    calib_notify(c, CALIB_BLOCK, c->at.stats.best_loss);
    return OK;
}

/* Moves every stream from before the block in work to before the next. */
static enum err advance(struct calibration *c)
{
    const int64_t next = c->block + 1;
    TRY(move_quantized(c, CALIB_ADVANCE));
    if (next + c->recon.depth < c->arch->n_layers)
        TRY(move_target(c, next + c->recon.depth, CALIB_ADVANCE));
    release_block(c, c->block);
    return OK;
}

/* Returns the passes of the whole run, for progress. */
static double all_units(const struct calibration *c, int64_t first)
{
    double units = cost_stream_passes(c->arch, c->s);
    for (int64_t b = first; b < c->arch->n_layers; b++) {
        const struct block_cost cost = cost_of_block(c->arch, c->s, b);
        units += cost_block_passes(&cost);
    }
    return units;
}

static enum err calibrate_all(struct calibration *c, int64_t first)
{
    TRY(open_calibration(c));
    c->units_total = all_units(c, first);
    if (first == c->arch->n_layers)
        return OK;
    TRY(fill_streams(c, first));
    for (c->block = first; c->block < c->arch->n_layers; c->block++) {
        TRY(calibrate_block(c));
        if (c->block + 1 < c->arch->n_layers)
            TRY(advance(c));
    }
    return OK;
}

enum err calib_run(struct dev *d, const struct arch *a, const struct model_source *src,
                   const struct calib_settings *s, const int32_t *tokens,
                   int64_t first_block, const struct calib_io *io)
{
    TRY(check_settings(a, s, first_block));
    TRY(dev_attn_check(d, a->head_dim));
    TRY(dev_engine_check(d, s->kv.target));
    struct calibration c = {.dev = d,
                            .arch = a,
                            .src = src,
                            .s = s,
                            .io = io,
                            .tokens = tokens,
                            .n_finished = first_block};
    const enum err err = calibrate_all(&c, first_block);
    close_calibration(&c);
    return err;
}
