/* SPDX-License-Identifier: MIT
 *
 * A dequantized checkpoint: every weight is the value of its code. */
#include "convert/export/export_formats.h"

#include "convert/export/hub.h"

static enum err add_linears(struct hub_plan *p, const struct export_job *j)
{
    const struct export_source *s = j->source;
    for (int64_t i = 0; i < s->n_linears;) {
        const struct hub_module m = hub_module_at(s, i);
        if (!hub_module_is_plain(&m))
            TRY(hub_add_values(p, &m, j->options.dtype));
        i += m.n;
    }
    for (int i = 0; i < s->n_ends; i++) {
        const struct hub_module m = hub_module_of(&s->end[i]);
        TRY(hub_add_values(p, &m, j->options.dtype));
    }
    return OK;
}

static int most_bits(const struct export_source *s)
{
    int most = 0;
    for (int64_t i = 0; i < s->n_linears; i++) {
        const int bits = s->linear[i].packed->bits;
        most = bits < 16 && bits > most ? bits : most;
    }
    return s->n_ends && s->end[0].packed->bits > most ? s->end[0].packed->bits : most;
}

static enum err note_weights(struct export_job *j)
{
    const int bits = most_bits(j->source), scale_bits = export_scale_bits(j->source);
    if (!bits)
        return OK;
    if (hub_is_exact(j->options.dtype, bits, scale_bits))
        return export_note(j, EXPORT_CARRIED, "The value of every code, exactly");
    return export_note(
        j, EXPORT_CHANGED,
        "The value of every code is rounded to %s, because code and scale have "
        "up to %d and %d significant bits; --dtype f32 holds it exactly",
        dtype_name(j->options.dtype), bits, scale_bits);
}

/* vLLM refuses Gemma 3 in float16, and with `--dtype auto` computes it in bfloat16. */
static enum err note_gemma(struct export_job *j)
{
    if (j->source->arch->family != ARCH_GEMMA3 || j->options.dtype != DT_F16)
        return OK;
    return export_note(
        j, EXPORT_CHANGED,
        "vLLM computes Gemma 3 in bfloat16 alone, which rounds these values once "
        "more; --dtype bf16 rounds them once");
}

static enum err check(struct export_job *j)
{
    static const char *const name[] = {
        [DT_F32] = "float32", [DT_F16] = "float16", [DT_BF16] = "bfloat16"};
    struct hub_plan *p;
    int64_t rounded;
    TRY(hub_plan_new(&p, j));
    TRY(note_weights(j));
    TRY(hub_add_rest(p, j->source, j->options.dtype));
    TRY(hub_note_rounded(j, j->options.dtype, &rounded));
    if (!most_bits(j->source) && !rounded)
        TRY(export_note(j, EXPORT_CARRIED, "The value of every weight, exactly"));
    TRY(note_gemma(j));
    TRY(add_linears(p, j));
    return hub_finish(j, NULL, name[j->options.dtype]);
}

const struct export_format export_dense = {
    .name = "dense",
    .engines = "every engine of Hugging Face checkpoints",
    .holds =
        "values as F16, BF16 or F32 (--dtype), all bits and groups, mixtures of experts; "
        "no smaller than the checkpoint",
    .cache = EXPORT_VLLM | EXPORT_TRANSFORMERS,
    .check = check,
    .write = hub_write,
    .release = hub_release,
};
