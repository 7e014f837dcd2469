/* SPDX-License-Identifier: MIT
 *
 * What config.json says of packed weights. A checkpoint is refused if its engines compute more than
 * these weights and the model: an artifact of its codes alone would then be another model. */
#include "convert/checkpoint/pack_layout.h"
#include "convert/checkpoint/packed/packed.h"

#include "convert/format/artifact_spec.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct packed_layout *const layouts[] = {&packed_compressed, &packed_gptq,
                                                      &packed_awq};

/* Members of a quantization_config that are read here or by a layout, or that need no reading,
 * because the tensors say the same or because they are of a tool's run. A member beyond these may
 * change what the codes mean. */
static const char *const known[] = {
    /* of several tools */
    "quant_method", "format", "checkpoint_format", "bits", "group_size", "sym", "version",
    "dynamic", "ignore", "lm_head", "meta", "provider", "backend", "dataset", "batch_size",
    "modules_to_not_convert", "data_type", "pack_dtype", "desc_act", "damp_percent",
    "true_sequential", "block_name_to_quantize", "modules_in_block_to_quantize",
    /* compressed-tensors */
    "config_groups", "quantization_status", "kv_cache_scheme", "sparsity_config",
    "transform_config", "global_compression_ratio", "run_compressed",
    /* AutoGPTQ, GPTQModel and transformers */
    "method", "static_groups", "model_name_or_path", "model_file_base_name",
    "is_marlin_format", "damp_auto_increment", "mse", "act_group_aware", "adapter",
    "rotation", "tokenizer", "use_exllama", "disable_exllama", "exllama_config",
    "max_input_length", "use_cuda_fp16", "cache_block_outputs",
    "module_name_preceding_first_block", "model_seqlen", "pad_token_id", "hyb_act",
    /* AutoAWQ and transformers */
    "zero_point", "q_group_size", "w_bit", "do_fuse", "fuse_max_seq_len", "modules_to_fuse",
    /* AutoRound */
    "packing_format", "autoround_version", "act_bits", "act_data_type", "act_group_size",
    "act_sym", "act_dynamic", "amp", "enable_minmax_tuning", "enable_norm_bias_tuning",
    "enable_quanted_input", "enable_torch_compile", "gradient_accumulate_steps", "iters",
    "lr", "low_gpu_mem_usage", "minmax_lr", "momentum", "nsamples", "not_use_best_mse",
    "quant_block_list", "to_quant_block_names", "regex_config", "extra_config",
    "scale_dtype", "seqlen", "supported_types", "static_attention_dtype", "static_kv_dtype",
    "static_attention_granularity", "static_kv_granularity", "super_bits",
    "super_group_size", "rotation_config", "rotation_configs", "spinquant_config"};

/* Members with which an engine changes the inputs or outputs of projections while it runs. */
static const struct {
    const char *key, *does;
} online[] = {{"rotation_config", "rotates the inputs of projections"},
              {"rotation_configs", "rotates the inputs of projections"},
              {"spinquant_config", "rotates the inputs of projections"},
              {"rotation", "rotates the inputs of down_proj"},
              {"adapter", "adds an adapter to the projections"}};

/* Returns false for what a tool writes in place of nothing: null, false, "", {} and []. */
static bool is_given(const json_t *v)
{
    const char *text = json_string_value(v);
    if (text)
        return *text;
    if (json_is_object(v) || json_is_array(v))
        return json_object_size(v) || json_array_size(v);
    return v && !json_is_null(v) && !json_is_false(v);
}

static void warn_unknown(const json_t *o, const char *where)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
    {
        size_t i = 0;
        while (i < ARRAY_LEN(known) && strcmp(key, known[i]))
            i++;
        if (i == ARRAY_LEN(known) && is_given(v))
            log_warn(
                "%s: \"%.60s\" is not known here and is ignored; if its engine computes "
                "other values because of it, the artifact will not have them",
                where, key);
    }
}

/* Weights that were multiplied before they were rounded are as they should be; other places are
 * transforms of what passes through the model while it runs. */
static enum err check_transform(const json_t *group, const char *name, const char *where)
{
    const json_t *apply = json_object_get(group, "apply"), *a;
    size_t i;
    FAIL_IF(
        !json_is_array(apply), ERR_SUPPORT,
        "%s: transform_config.config_groups.%.60s has no list \"apply\", so that what it "
        "does is not known",
        where, name);
    json_array_foreach(apply, i, a)
    {
        const char *at = json_member_text(a, "location");
        FAIL_IF(
            strcmp(at, "weight_input") && strcmp(at, "weight_output"), ERR_SUPPORT,
            "%s: transform_config.config_groups.%.60s has location \"%.40s\", with which an "
            "engine transforms activations while it runs, but an artifact holds weights alone; "
            "quantize with transforms of weights alone, or without",
            where, name, at);
    }
    return OK;
}

static enum err check_transforms(const json_t *o, const char *where)
{
    json_t *transform = json_object_get(o, "transform_config"), *group;
    const char *name;
    if (!is_given(transform))
        return OK;
    json_t *groups = json_object_get(transform, "config_groups");
    FAIL_IF(!json_is_object(groups), ERR_SUPPORT,
            "%s: transform_config has no config_groups, so that what it does is not known",
            where);
    json_object_foreach(groups, name, group) TRY(check_transform(group, name, where));
    return OK;
}

static enum err check_online(const json_t *o, const char *where)
{
    for (size_t i = 0; i < ARRAY_LEN(online); i++)
        FAIL_IF(
            is_given(json_object_get(o, online[i].key)), ERR_SUPPORT,
            "%s: %s is given, with which an engine %s while it runs, but an artifact holds "
            "weights alone; quantize without it",
            where, online[i].key, online[i].does);
    return check_transforms(o, where);
}

/* Checks data_type and act_bits, which AutoRound has for the whole and for single modules. */
static enum err check_types(const json_t *o, const char *where)
{
    static const char *const integer[] = {
        "", "int", "int_sym", "int_asym", "int_sym_gptq", "rtn_int_sym", "opt_rtn_int_sym"};
    const char *type = json_member_text(o, "data_type");
    int64_t act_bits = 16;
    size_t i = 0;
    while (i < ARRAY_LEN(integer) && strcmp(type, integer[i]))
        i++;
    FAIL_IF(
        i == ARRAY_LEN(integer), ERR_SUPPORT,
        "%s: data_type is \"%.40s\"; integers with a scale and a zero point (int) are read",
        where, type);
    TRY(json_get_int(&act_bits, o, "act_bits", 1, 64, where));
    FAIL_IF(act_bits < 16, ERR_SUPPORT,
            "%s: act_bits is %" PRId64
            ", but given weights are read without rounded activations",
            where, act_bits);
    return OK;
}

static enum err check_all_types(const json_t *o, const char *where)
{
    json_t *module;
    const char *name;
    TRY(check_types(o, where));
    json_object_foreach(json_object_get(o, "extra_config"), name, module)
    {
        char place[700];
        snprintf(place, sizeof(place), "%.560s: extra_config: %.100s", where, name);
        TRY(check_types(module, place));
    }
    return OK;
}

static enum err check_sparsity(const json_t *o, const char *where)
{
    const json_t *sparsity = json_object_get(o, "sparsity_config");
    const char *format = json_member_text(sparsity, "format");
    FAIL_IF(*format && strcmp(format, "dense"), ERR_SUPPORT,
            "%s: sparsity_config.format is \"%.40s\"; only \"dense\" is read", where,
            format);
    return OK;
}

/* Returns the layout that o describes, or NULL. */
static const struct packed_layout *find_layout(const json_t *o)
{
    for (size_t i = 0; i < ARRAY_LEN(layouts); i++)
        if (layouts[i]->describes(o))
            return layouts[i];
    return NULL;
}

static enum err read_description(struct packed_config *c, const json_t *o,
                                 const char *where)
{
    const char *packing = json_member_text(o, "packing_format");
    c->layout = find_layout(o);
    FAIL_IF(!c->layout, ERR_SUPPORT,
            "%s: quant_method is \"%.60s\"%s%.60s; docs/import.md lists what is read",
            where, json_member_text(o, "quant_method"), *packing ? ", packing_format " : "",
            packing);
    TRY(check_all_types(o, where));
    TRY(check_online(o, where));
    TRY(check_sparsity(o, where));
    return c->layout->read_config(c, o, where);
}

bool packed_reads(const json_t *o)
{
    struct packed_config c = {0};
    const bool reads = json_is_object(o) && !read_description(&c, o, "");
    err_clear();
    return reads;
}

enum err packed_read_config(struct packed_config *c, const char *dir, const char *wants)
{
    enum err err = OK;
    char *path = NULL, where[600];
    json_t *o = NULL, *q;
    TRY(file_join(&path, dir, "config.json"));
    TRY_OUT(json_load_file_lenient(&o, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST));
    const bool old = !json_is_object(json_object_get(o, "quantization_config"));
    const char *key = old ? "compression_config" : "quantization_config";
    q = json_object_get(o, key);
    if (!json_is_object(q))
        FAIL_OUT(ERR_USAGE,
                 "%s: no quantization_config, so its weights are not quantized; %s", path,
                 wants);
    if (spec_is_ours(q))
        FAIL_OUT(
            ERR_USAGE,
            "%s: this is a wkvq artifact; to take its codes, write them as a checkpoint: "
            "`wkvq export %.200s --format compressed-tensors --kv drop -o DIR`, then give "
            "--weights-from DIR",
            dir, dir);
    snprintf(where, sizeof(where), "%.500s: %s", path, key);
    TRY_OUT(read_description(c, q, where));
    warn_unknown(q, where);
out:
    json_decref(o);
    mem_free(path);
    return err;
}
