/* SPDX-License-Identifier: MIT
 *
 * Converts config.json to struct arch. A missing field has the default of transformers'
 * configuration class of the model_type; a missing size is logged. A setting that changes
 * the mathematics and is not supported is refused, never ignored. */
#include "convert/checkpoint/hf_config.h"
#include "convert/checkpoint/hf_experts.h"
#include "convert/checkpoint/hf_window.h"
#include "convert/checkpoint/packed/packed.h"

#include "convert/format/artifact_spec.h"
#include "data/json.h"
#include "kernels/base/half.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <strings.h>

/* Features of a model_type, and the defaults of transformers' configuration class, where 0
 * represents None. */
struct family {
    const char *model_type, *architecture;
    enum arch_family family;
    /* ff 0: the size is that of an expert, which hf_read_experts() reads. */
    int64_t hidden, ff, layers, heads, kv, head_dim, vocab, positions, window;
    int64_t bos, eos;  /* -1 represents None */
    double theta, eps; /* eps 0: 1e-6 */
    enum window_rule window_rule;
    bool tied;
    bool has_attention_bias /* the field is read */, qkv_bias /* whatever the field */;
    bool has_mlp_bias;    /* the field is read */
    bool has_multipliers; /* Granite's four fields are read */
    bool has_no_rope;     /* no_rope_layers and no_rope_layer_interval are read */
    bool fused;           /* q, k, v and gate, up: as in struct arch */
    bool is_phi;          /* rope: some of a head's channels, and kinds of its own */
    bool is_gemma;        /* see read_gemma() */
    enum norm_place norms;
    enum qk_norm qk_norm;
};

/* clang-format off */
static const struct family families[] = {
    {.model_type = "llama", .architecture = "LlamaForCausalLM", .family = ARCH_LLAMA,
     .hidden = 4096, .ff = 11008, .layers = 32, .heads = 32, .vocab = 32000,
     .positions = 2048, .bos = 1, .eos = 2, .theta = 1e4,
     .has_attention_bias = true, .has_mlp_bias = true},
    {.model_type = "mistral", .architecture = "MistralForCausalLM", .family = ARCH_MISTRAL,
     .hidden = 4096, .ff = 14336, .layers = 32, .heads = 32, .kv = 8, .vocab = 32000,
     .positions = 131072, .window = 4096, .bos = 1, .eos = 2, .theta = 1e4,
     .window_rule = WINDOW_LISTED},
    {.model_type = "qwen2", .architecture = "Qwen2ForCausalLM", .family = ARCH_QWEN2,
     .hidden = 4096, .ff = 22016, .layers = 32, .heads = 32, .kv = 32, .vocab = 151936,
     .positions = 32768, .window = 4096, .bos = -1, .eos = -1, .theta = 1e4,
     .window_rule = WINDOW_FROM, .qkv_bias = true},
    {.model_type = "qwen3", .architecture = "Qwen3ForCausalLM", .family = ARCH_QWEN3,
     .hidden = 4096, .ff = 22016, .layers = 32, .heads = 32, .kv = 32, .head_dim = 128,
     .vocab = 151936, .positions = 32768, .window = 4096, .bos = -1, .eos = -1,
     .theta = 1e4, .window_rule = WINDOW_FROM, .has_attention_bias = true,
     .qk_norm = QK_NORM_HEAD},
    {.model_type = "granite", .architecture = "GraniteForCausalLM", .family = ARCH_GRANITE,
     .hidden = 4096, .ff = 11008, .layers = 32, .heads = 32, .vocab = 32000,
     .positions = 2048, .bos = 1, .eos = 2, .theta = 1e4,
     .has_attention_bias = true, .has_mlp_bias = true, .has_multipliers = true},
    {.model_type = "smollm3", .architecture = "SmolLM3ForCausalLM", .family = ARCH_SMOLLM3,
     .hidden = 2048, .ff = 11008, .layers = 36, .heads = 16, .kv = 4, .vocab = 128256,
     .positions = 32768, .bos = 128000, .eos = 128001, .theta = 2e6,
     .window_rule = WINDOW_NO_ROPE, .tied = true,
     .has_attention_bias = true, .has_mlp_bias = true, .has_no_rope = true},
    {.model_type = "phi3", .architecture = "Phi3ForCausalLM", .family = ARCH_PHI3,
     .hidden = 3072, .ff = 8192, .layers = 32, .heads = 32, .vocab = 32064,
     .positions = 4096, .bos = 1, .eos = 32000, .theta = 1e4, .eps = 1e-5,
     .window_rule = WINDOW_ALL, .fused = true, .is_phi = true},
    {.model_type = "olmo2", .architecture = "Olmo2ForCausalLM", .family = ARCH_OLMO2,
     .hidden = 4096, .ff = 11008, .layers = 32, .heads = 32, .vocab = 50304,
     .positions = 2048, .bos = -1, .eos = 50279, .theta = 1e4, .eps = 1e-5,
     .has_attention_bias = true, .norms = NORMS_BEHIND, .qk_norm = QK_NORM_ALL},
    {.model_type = "gemma3_text", .architecture = "Gemma3ForCausalLM", .family = ARCH_GEMMA3,
     .hidden = 2304, .ff = 9216, .layers = 26, .heads = 8, .kv = 4, .head_dim = 256,
     .vocab = 262208, .positions = 131072, .window = 4096, .bos = 2, .eos = 1, .theta = 1e6,
     .window_rule = WINDOW_PATTERN, .tied = true, .has_attention_bias = true,
     .norms = NORMS_AROUND, .qk_norm = QK_NORM_HEAD, .is_gemma = true},
    {.model_type = "qwen3_moe", .architecture = "Qwen3MoeForCausalLM",
     .family = ARCH_QWEN3_MOE, .hidden = 2048, .layers = 24, .heads = 32, .kv = 4,
     .vocab = 151936, .positions = 32768, .window = 4096, .bos = -1, .eos = -1,
     .theta = 1e4, .window_rule = WINDOW_USED, .has_attention_bias = true,
     .qk_norm = QK_NORM_HEAD},
    {.model_type = "mixtral", .architecture = "MixtralForCausalLM", .family = ARCH_MIXTRAL,
     .hidden = 4096, .layers = 32, .heads = 32, .kv = 8, .vocab = 32000,
     .positions = 131072, .bos = 1, .eos = 2, .theta = 1e6, .eps = 1e-5,
     .window_rule = WINDOW_ALL},
};
/* clang-format on */
#define FAMILY_NAMES                                                                       \
    "llama, mistral, qwen2, qwen3, granite, smollm3, phi3, olmo2, gemma3_text, qwen3_moe " \
    "and mixtral"

static const struct family *family_of(const struct arch *a)
{
    size_t i = 0;
    while (families[i].family != a->family)
        i++;
    return &families[i];
}

const char *hf_architecture(const struct arch *a)
{
    return family_of(a)->architecture;
}

bool hf_ties_by_default(const struct arch *a)
{
    return family_of(a)->tied;
}

struct reader {
    const json_t *o;
    const char *where; /* the file's path */
    const char *dir;   /* the model's, for commands that a message shows */
    const struct family *f;
};

/* --- what is refused at once -------------------------------------------------------- */

static enum err find_family(struct reader *r)
{
    const char *type = NULL;
    TRY(json_get_string(&type, r->o, "model_type", r->where));
    FAIL_IF(!type, ERR_FORMAT, "%s: model_type is missing; supported are " FAMILY_NAMES,
            r->where);
    for (size_t i = 0; i < ARRAY_LEN(families); i++)
        if (!strcmp(type, families[i].model_type))
            r->f = &families[i];
    FAIL_IF(!r->f, ERR_SUPPORT,
            "%s: model_type \"%.60s\" is not supported; supported are " FAMILY_NAMES,
            r->where, type);
    return OK;
}

static enum err check_architecture(const struct reader *r)
{
    json_t *list;
    TRY(json_get_array(&list, r->o, "architectures", r->where));
    if (!list || json_array_size(list) == 0)
        return OK;
    const char *name = json_string_value(json_array_get(list, 0));
    FAIL_IF(!name, ERR_FORMAT, "%s: architectures[0] is not a string", r->where);
    const size_t stem = strlen(r->f->architecture) - strlen("ForCausalLM");
    const bool base =
        !strncasecmp(name, r->f->architecture, stem) && !strcasecmp(name + stem, "Model");
    FAIL_IF(!base && strcasecmp(name, r->f->architecture), ERR_SUPPORT,
            "%s: architectures[0] \"%.80s\" is not supported with model_type \"%s\"; "
            "supported are %s and, with tied embeddings, %.*sModel",
            r->where, name, r->f->model_type, r->f->architecture, (int)stem,
            r->f->architecture);
    return OK;
}

static enum err refuse_quantized(const struct reader *r, const char *key, const json_t *q)
{
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    method = method ? method : "not given";
    FAIL_IF(
        packed_reads(q), ERR_SUPPORT,
        "%s: %s is present (quant_method %.60s): the weights are already quantized; "
        "use the full-precision checkpoint, or make an artifact of its codes: `wkvq convert "
        "%.200s --weights-from %.200s -o OUT`",
        r->where, key, method, r->dir, r->dir);
    FAIL(
        ERR_SUPPORT,
        "%s: %s is present (quant_method %.60s): the weights are already quantized; use the "
        "full-precision checkpoint, because --weights-from does not read this format",
        r->where, key, method);
}

/* Refuses quantized weights. Artifacts are accepted, because their reader uses this
 * file. */
static enum err check_unquantized(const struct reader *r)
{
    static const char *const key[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < ARRAY_LEN(key); i++) {
        json_t *q = json_object_get(r->o, key[i]);
        if (!q || json_is_null(q))
            continue;
        if (i > 0 || !spec_is_ours(q))
            return refuse_quantized(r, key[i], q);
    }
    return OK;
}

static enum err check_activation(const struct reader *r)
{
    const char *act = r->f->is_gemma ? "gelu_pytorch_tanh" : "silu";
    if (r->f->is_gemma) {
        TRY(json_get_string(&act, r->o, "hidden_activation", r->where));
        FAIL_IF(strcmp(act, "gelu_pytorch_tanh"), ERR_SUPPORT,
                "%s: hidden_activation \"%.60s\" is not supported; supported with this "
                "model_type is \"gelu_pytorch_tanh\"",
                r->where, act);
        return OK;
    }
    TRY(json_get_string(&act, r->o, "hidden_act", r->where));
    FAIL_IF(strcmp(act, "silu") && strcmp(act, "swish"), ERR_SUPPORT,
            "%s: hidden_act \"%.60s\" is not supported; supported is \"silu\"", r->where,
            act);
    return OK;
}

/* Refuses attention to later tokens, which models of embeddings have. transformers reads the first
 * field in every family, and the second in Gemma's. */
static enum err check_causal(const struct reader *r)
{
    bool causal = true, both_ways = false;
    TRY(json_get_bool(&causal, r->o, "is_causal", r->where));
    FAIL_IF(!causal, ERR_SUPPORT,
            "%s: is_causal is false; only causal attention is supported", r->where);
    if (r->f->is_gemma)
        TRY(json_get_bool(&both_ways, r->o, "use_bidirectional_attention", r->where));
    FAIL_IF(both_ways, ERR_SUPPORT,
            "%s: use_bidirectional_attention is true; only causal attention is supported",
            r->where);
    return OK;
}

/* Refuses settings of single layers, which transformers 5 takes from any config.json. */
static enum err check_alike(const struct reader *r)
{
    json_t *layers;
    TRY(json_get_object(&layers, r->o, "per_layer_config", r->where));
    FAIL_IF(json_object_size(layers) > 0, ERR_SUPPORT,
            "%s: per_layer_config gives %zu layers settings of their own; supported are "
            "layers with the same settings",
            r->where, json_object_size(layers));
    return OK;
}

/* --- sizes -------------------------------------------------------------------------- */

enum err hf_read_size(int64_t *out, const json_t *o, const char *key, int64_t otherwise,
                      const char *where)
{
    *out = otherwise;
    if (!hf_is_given(o, key))
        log_warn("%s: %s is missing, taken as %" PRId64
                 " as transformers takes it for \"%s\"",
                 where, key, otherwise, json_member_text(o, "model_type"));
    return json_get_int(out, o, key, ANY_LO, ANY_HI, where);
}

static enum err read_size(int64_t *out, const struct reader *r, const char *key,
                          int64_t otherwise)
{
    return hf_read_size(out, r->o, key, otherwise, r->where);
}

static enum err read_heads(struct arch *a, const struct reader *r)
{
    const struct family *f = r->f;
    TRY(read_size(&a->n_heads, r, "num_attention_heads", f->heads));
    FAIL_IF(a->n_heads < 1, ERR_FORMAT, "%s: num_attention_heads is %" PRId64, r->where,
            a->n_heads);
    /* missing: the class's default; null: n_heads */
    const bool missing = !json_object_get(r->o, "num_key_value_heads");
    a->n_kv = missing && f->kv ? f->kv : a->n_heads;
    TRY(json_get_int(&a->n_kv, r->o, "num_key_value_heads", ANY_LO, ANY_HI, r->where));
    FAIL_IF(a->n_kv < 1, ERR_FORMAT, "%s: num_key_value_heads is %" PRId64, r->where,
            a->n_kv);
    if (hf_is_given(r->o, "head_dim"))
        return json_get_int(&a->head_dim, r->o, "head_dim", ANY_LO, ANY_HI, r->where);
    if (f->head_dim && !json_object_get(r->o, "head_dim")) {
        a->head_dim = f->head_dim;
        return OK;
    }
    FAIL_IF(a->d_model % a->n_heads, ERR_FORMAT,
            "%s: hidden_size %" PRId64 " is not a multiple of num_attention_heads %" PRId64
            ", and head_dim is missing",
            r->where, a->d_model, a->n_heads);
    a->head_dim = a->d_model / a->n_heads;
    return OK;
}

static enum err read_sizes(struct arch *a, const struct reader *r)
{
    const struct family *f = r->f;
    double eps = f->eps != 0 ? f->eps : 1e-6;
    TRY(read_size(&a->d_model, r, "hidden_size", f->hidden));
    if (f->ff) /* without, hf_read_experts() reads it */
        TRY(read_size(&a->d_ff, r, "intermediate_size", f->ff));
    TRY(read_size(&a->n_layers, r, "num_hidden_layers", f->layers));
    FAIL_IF(a->n_layers < 1 || a->n_layers > ARCH_MAX_LAYERS, ERR_FORMAT,
            "%s: num_hidden_layers is %" PRId64 ", want 1 to %d", r->where, a->n_layers,
            ARCH_MAX_LAYERS);
    TRY(read_size(&a->vocab, r, "vocab_size", f->vocab));
    TRY(read_heads(a, r));
    a->max_positions = f->positions;
    TRY(json_get_int(&a->max_positions, r->o, "max_position_embeddings", ANY_LO, ANY_HI,
                     r->where));
    TRY(json_get_real(&eps, r->o, "rms_norm_eps", -1e300, 1e300, r->where));
    a->norm_eps = (float)eps;
    a->tied = f->tied;
    TRY(json_get_bool(&a->tied, r->o, "tie_word_embeddings", r->where));
    a->qk_norm = f->qk_norm;
    a->fused = f->fused;
    a->norms = f->norms;
    if (f->has_attention_bias)
        TRY(json_get_bool(&a->o_bias, r->o, "attention_bias", r->where));
    a->qkv_bias = f->qkv_bias || a->o_bias;
    if (f->has_mlp_bias)
        TRY(json_get_bool(&a->mlp_bias, r->o, "mlp_bias", r->where));
    return OK;
}

/* Reads a factor; missing: 1. */
static enum err read_factor(double *out, const struct reader *r, const char *key)
{
    *out = 1;
    TRY(json_get_real(out, r->o, key, -1e300, 1e300, r->where));
    FAIL_IF(!(*out > 0), ERR_FORMAT, "%s: %s is %g, want a number above 0", r->where, key,
            *out);
    return OK;
}

/* Reads Granite's factors. Its scores have no other one, so 1 is not 1 / sqrt(d). */
static enum err read_multipliers(struct arch *a, const struct reader *r)
{
    double logits;
    if (!r->f->has_multipliers)
        return OK;
    TRY(read_factor(&a->embed_scale, r, "embedding_multiplier"));
    TRY(read_factor(&a->attn_scale, r, "attention_multiplier"));
    TRY(read_factor(&a->residual_scale, r, "residual_multiplier"));
    TRY(read_factor(&logits, r, "logits_scaling"));
    a->logit_scale = 1 / logits;
    return OK;
}

/* Refuses soft caps of scores and logits, which Gemma 2 has. */
static enum err refuse_caps(const struct reader *r)
{
    static const char *const cap[] = {"attn_logit_softcapping", "final_logit_softcapping"};
    for (size_t i = 0; i < ARRAY_LEN(cap); i++)
        FAIL_IF(hf_is_given(r->o, cap[i]), ERR_SUPPORT,
                "%s: %s is given; soft caps are not supported", r->where, cap[i]);
    return OK;
}

/* transformers keeps the factor of the embedding, the root of its width, in the type of the
 * weights. */
double hf_gemma_factor(int64_t width, enum dtype dtype)
{
    const float root = (float)sqrt((double)width);
    return (double)(dtype == DT_BF16  ? bf16_to_f32(bf16_from_f32(root))
                    : dtype == DT_F16 ? f16_to_f32(f16_from_f32(root))
                                      : root);
}

/* Reads what Gemma 3 has beside norms and windows. */
static enum err read_gemma(struct arch *a, const struct reader *r)
{
    double scalar = 256;
    if (!r->f->is_gemma)
        return OK;
    TRY(refuse_caps(r));
    TRY(json_get_real(&scalar, r->o, "query_pre_attn_scalar", -1e300, 1e300, r->where));
    FAIL_IF(!(scalar > 0), ERR_FORMAT,
            "%s: query_pre_attn_scalar is %g, want a number above 0", r->where, scalar);
    a->attn_scale = 1 / sqrt(scalar);
    a->embed_scale = hf_gemma_factor(a->d_model, a->dtype);
    a->gain_plus_one = true;
    a->gate = GATE_GELU;
    return OK;
}

/* --- the rest ----------------------------------------------------------------------- */

/* Reads an id or a list of at most max ids; *n is their number. null: none; missing:
 * `otherwise`. */
static enum err read_ids(int64_t *id, int64_t *n, int64_t max, int64_t otherwise,
                         const struct reader *r, const char *key)
{
    const json_t *v = json_object_get(r->o, key);
    *n = 0;
    if (!v && otherwise >= 0)
        id[(*n)++] = otherwise;
    if (!v || json_is_null(v))
        return OK;
    const size_t count = json_is_array(v) ? json_array_size(v) : 1;
    FAIL_IF((int64_t)count > max, ERR_SUPPORT,
            "%s: %s has %zu ids, at most %" PRId64 " are supported", r->where, key, count,
            max);
    for (size_t i = 0; i < count; i++) {
        const json_t *x = json_is_array(v) ? json_array_get(v, i) : v;
        FAIL_IF(!json_is_integer(x), ERR_FORMAT,
                "%s: %s is or holds %s, want an integer or a list of integers", r->where,
                key, json_kind(x));
        if (json_integer_value(x) >= 0)
            id[(*n)++] = (int64_t)json_integer_value(x);
    }
    return OK;
}

static enum err read_specials(struct arch *a, const struct reader *r)
{
    int64_t bos[8], n;
    TRY(read_ids(bos, &n, 8, r->f->bos, r, "bos_token_id"));
    a->bos = n > 0 ? bos[0] : -1;
    return read_ids(a->eos, &a->n_eos, 8, r->f->eos, r, "eos_token_id");
}

static const struct {
    const char *name;
    enum dtype dtype;
} dtypes[] = {{"float32", DT_F32}, {"float16", DT_F16}, {"bfloat16", DT_BF16}};

/* Missing: DT_OTHER of a family whose mathematics it decides, see hf_take_dtype(). */
static enum err read_dtype(struct arch *a, const struct reader *r)
{
    const char *name = r->f->is_gemma ? "" : "float32";
    TRY(json_get_string(&name, r->o, "torch_dtype", r->where));
    /* has precedence, as in transformers */
    TRY(json_get_string(&name, r->o, "dtype", r->where));
    if (!strncmp(name, "torch.", 6))
        name += 6;
    a->dtype = DT_OTHER;
    for (size_t i = 0; i < ARRAY_LEN(dtypes); i++)
        if (!strcmp(name, dtypes[i].name))
            a->dtype = dtypes[i].dtype;
    FAIL_IF(r->f->is_gemma && *name && a->dtype == DT_OTHER, ERR_SUPPORT,
            "%s: dtype \"%.60s\" is not supported with this model_type, whose embedding it "
            "scales; supported are float32, float16 and bfloat16",
            r->where, name);
    return OK;
}

void hf_take_dtype(struct arch *a, enum dtype stored)
{
    if (a->dtype != DT_OTHER || !family_of(a)->is_gemma)
        return;
    a->dtype = stored;
    a->embed_scale = hf_gemma_factor(a->d_model, stored);
}

const char *hf_dtype_name(const struct arch *a)
{
    for (size_t i = 0; i < ARRAY_LEN(dtypes); i++)
        if (a->dtype == dtypes[i].dtype)
            return dtypes[i].name;
    return NULL;
}

static enum err read_all(struct arch *out, struct reader *r, bool packed)
{
    struct arch a = {0};
    FAIL_IF(!json_is_object(r->o), ERR_FORMAT, "%s: the file holds %s, want an object",
            r->where, json_kind(r->o));
    TRY(find_family(r));
    TRY(check_architecture(r));
    if (!packed)
        TRY(check_unquantized(r));
    TRY(check_activation(r));
    TRY(check_causal(r));
    TRY(check_alike(r));
    a.family = r->f->family;
    strcpy(a.model_type, r->f->model_type);
    TRY(read_sizes(&a, r));
    TRY(hf_read_experts(&a, r->o, r->where));
    TRY(read_dtype(&a, r));
    TRY(read_multipliers(&a, r));
    TRY(read_gemma(&a, r));
    a.rope_theta = r->f->theta;
    a.rope_theta_sliding = r->f->is_gemma ? 1e4 : 0;
    TRY(hf_read_rope(&a, r->o, r->where, r->f->is_phi));
    if (r->f->has_no_rope)
        TRY(hf_read_no_rope(&a, r->o, r->where));
    TRY(hf_read_window(&a, r->o, r->where, r->f->window_rule, r->f->window));
    TRY(read_specials(&a, r));
    const enum err err = arch_check(&a);
    if (err)
        return err_add(err, "%s: ", r->where);
    *out = a;
    return OK;
}

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcasecmp(text + n - m, end);
}

static enum err check_directory(const char *dir)
{
    FAIL_IF(ends_in(dir, ".gguf"), ERR_SUPPORT,
            "%s: GGUF files are not read; give the Hugging Face model directory it was "
            "made from",
            dir);
    TRY(file_check_link(dir));
    FAIL_IF(file_exists(dir) && !file_is_dir(dir), ERR_USAGE,
            "%s: not a directory; give a Hugging Face model directory (config.json and "
            "*.safetensors)",
            dir);
    FAIL_IF(!file_is_dir(dir), ERR_NOT_FOUND, "%s: no such directory", dir);
    return OK;
}

/* Training of an adapter leaves its files alone or beside the base model's. transformers with PEFT
 * would add them to the weights. has_model: there is a config.json. */
static enum err check_adapter(const char *dir, bool has_model)
{
    char *path = NULL;
    TRY(file_join(&path, dir, "adapter_config.json"));
    const bool adapter = file_exists(path);
    mem_free(path);
    FAIL_IF(adapter && !has_model, ERR_SUPPORT,
            "%s: a PEFT adapter without its model; merge the adapter into the weights "
            "(merge_and_unload), and save that model",
            dir);
    if (adapter)
        log_warn(
            "%s: adapter_config.json: a PEFT adapter is not added to the weights; merge it "
            "into them (merge_and_unload) if the model needs it",
            dir);
    return OK;
}

static enum err read_config(struct arch *out, const char *model_dir, bool packed)
{
    enum err err = OK;
    char *path = NULL;
    json_t *o = NULL;
    TRY(check_directory(model_dir));
    TRY(file_join(&path, model_dir, "config.json"));
    TRY_OUT(file_check_link(path));
    TRY_OUT(check_adapter(model_dir, file_exists(path)));
    if (!file_exists(path))
        FAIL_OUT(ERR_NOT_FOUND,
                 "%s: no such file; a Hugging Face model directory has one beside its "
                 "*.safetensors",
                 path);
    TRY_OUT(json_load_file_lenient(&o, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST));
    struct reader r = {.o = o, .where = path, .dir = model_dir};
    TRY_OUT(read_all(out, &r, packed));
out:
    json_decref(o);
    mem_free(path);
    return err;
}

enum err hf_read_config(struct arch *out, const char *model_dir)
{
    return read_config(out, model_dir, false);
}

enum err hf_read_packed_config(struct arch *out, const char *model_dir)
{
    return read_config(out, model_dir, true);
}
