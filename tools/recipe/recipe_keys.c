/* SPDX-License-Identifier: MIT
 *
 * The table of configuration keys, and the texts that are printed from it. */
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tools/cli/opt.h"
#include "tools/recipe/recipe_priv.h"

#include <inttypes.h>
#include <string.h>

#define AT(field) offsetof(struct recipe, field)

/* clang-format off */
const struct recipe_key recipe_key[] = {
    {"calibration.data", KEY_FILES, AT(data), "", .affects_speed_only = true,
     .help = "text to calibrate on: plain text or JSON rows, also compressed or in an "
             "archive; several files are joined, or each gives its share of the windows"},
    {"calibration.text_field", KEY_NAME, AT(text_field), "", .affects_speed_only = true, .omit_default = true,
     .help = "field of a JSON row that holds its text, or its list of chat messages; empty: text, else content, else messages"},
    {"calibration.samples", KEY_INT, AT(samples), "128", RANGE_SAMPLES,
     .help = "number of random windows of the text; time grows with it"},
    {"calibration.seqlen", KEY_INT, AT(seqlen), "2048", RANGE_SEQLEN,
     .help = "tokens per window"},
    {"calibration.epochs", KEY_INT, AT(epochs), "5", RANGE_EPOCHS,
     .help = "passes over the windows per block; 0 keeps the start values"},
    {"calibration.batch", KEY_INT, AT(batch), "1", RANGE_BATCH, .omit_default = true,
     .help = "windows per step of training, whose mean loss it lowers; more give fewer and steadier steps"},
    {"calibration.eval_samples", KEY_COUNT, AT(eval_samples), "auto", RANGE_EVAL_SAMPLES,
     .help = "first windows on which the loss is measured before and after each epoch, to keep the best; 0: all; auto: 16, or as the state began"},
    {"calibration.seed", KEY_INT, AT(seed), "0", 0, 4294967295.0,
     .help = "seed of the windows' offsets (random.seed in the original recipe)"},
    {"calibration.join", KEY_CHOICE, AT(join), "auto", .choices = CHOICES_JOIN,
     .help = "rows: every line is a row, rows are joined by two newlines; file: "
             "unchanged; space: rows are joined by a space, as for PTB; auto: rows for .raw and .tokens"},
    {"calibration.bos", KEY_CHOICE, AT(bos), "auto", .choices = CHOICES_BOS,
     .help = "one BOS token before the text; auto: as the model's tokenizer does"},

    {"weights.method", KEY_CHOICE, AT(weight_method), "lwc", .choices = "rtn|lwc|gptq|given",
     .help = "rtn rounds to nearest; lwc learns a clipping range per group; gptq rounds "
             "column by column and corrects the errors in the columns after it; given is set "
             "by --weights-from, which takes another tool's codes"},
    {"weights.bits", KEY_BITS, AT(weight_bits), "4",
     .help = "bits per weight code; 16 leaves the weights unquantized"},
    {"weights.group_size", KEY_INT, AT(weight_group), "128", RANGE_WEIGHT_GROUP,
     .help = "input columns that share a scale and zero; 0: the whole row; the last group "
             "may be shorter"},
    {"weights.scale_bits", KEY_INT, AT(scale_bits), "11", RANGE_SCALE_BITS, .omit_default = true,
     .help = "significant bits of a scale; 11 are all of fp16's; with 7, weights of up to 4 "
             "bits are exact in other engines' formats, too"},
    {"weights.mixed", KEY_MIX, AT(weight_mix), "", .of = MIX_WEIGHTS, .omit_default = true,
     .help = "other bits and group sizes for some projections, in some layers: "
             "'[LAYERS.]KIND=BITS[:GROUP], ...', as in 'v_proj=8:64, 0-3.down_proj=5:128, "
             "29.o_proj=6'; the last matching rule wins; a file's rules end where --set or a cell "
             "gives weights.bits or weights.group_size alone"},
    {"weights.damp", KEY_REAL, AT(damp), "0.01", RANGE_DAMP,
     .help = "gptq: value added to the Hessian's diagonal, as a share of the diagonal's "
             "mean"},
    {"weights.act_order", KEY_BOOL, AT(act_order), "false",
     .help = "gptq: quantize columns of large inputs first; groups stay contiguous and "
             "keep the scales of the original weights"},
    {"weights.round", KEY_CHOICE, AT(weight_round), "nearest", .choices = "nearest|learned",
     .help = "learned: train an offset per weight inside the rounding; the codes become "
             "part of the result"},
    {"weights.init", KEY_CHOICE, AT(weight_init), "paper", .choices = "paper|search",
     .help = "start of clipping: paper, 0.982 everywhere; search, the value per group "
             "with the least output error on the samples"},

    {"head.bits", KEY_BITS, AT(head_bits), "16", .omit_default = true,
     .help = "bits per code of the embedding and the output head, which are rounded to "
             "nearest under a searched clipping; 16 leaves them unquantized"},
    {"head.group_size", KEY_INT, AT(head_group), "128", RANGE_WEIGHT_GROUP, .omit_default = true,
     .help = "columns of their rows that share a scale and zero; 0: the whole row; the last "
             "group may be shorter"},

    {"kv.method", KEY_CHOICE, AT(kv_method), "channel_token", .choices = "token|channel_token|channel",
     .help = "channel_token: static shift and smoothing per channel, then quantization "
             "per token; token: per token only; channel: keys per channel in blocks of "
             "tokens, values per token, in simulation only (calibrate, eval)"},
    {"kv.bits", KEY_BITS, AT(kv_bits), "4",
     .help = "bits per cache code; 16 leaves the cache unquantized"},
    {"kv.group_size", KEY_INT, AT(kv_group), "128", RANGE_KV_GROUP,
     .help = "channels inside a head that share a scale and minimum; at most the head's "
             "width; with kv.method: channel also the tokens in a block of keys"},
    {"kv.mixed", KEY_MIX, AT(kv_mix), "", .of = MIX_KV, .omit_default = true,
     .help = "other bits and group sizes for keys or values, in some layers, as in 'k=5, 0-3.v=8:32'"},
    {"kv.key_stage", KEY_CHOICE, AT(key_stage), "post_rope", .choices = "post_rope|pre_rope",
     .help = "quantize keys after or before the rotary embedding"},
    {"kv.past_only", KEY_BOOL, AT(past_only), "true",
     .help = "true keeps a token's own key and value in full precision; false quantizes "
             "them as well"},
    {"kv.window", KEY_INT, AT(window), "1", RANGE_WINDOW,
     .help = "number of most recent tokens in full precision, including the current one; "
             "more than 1 needs past_only"},
    {"kv.sink", KEY_INT, AT(sink), "0", RANGE_SINK,
     .help = "number of first tokens in full precision"},
    {"kv.learn", KEY_BOOL, AT(learn), "true",
     .help = "learn shift and smoothing; false keeps their start values, also in refinement unless "
             "refine.learn names the cache"},
    {"kv.init", KEY_CHOICE, AT(kv_init), "paper", .choices = "paper|search",
     .help = "start of the smoothing: paper, the square root of a channel's width; "
             "search, its power with the least cache error on the samples"},
    {"kv.rotate", KEY_CHOICE, AT(rotate), "none", .choices = "none|v|k|kv",
     .help = "rotate values, keys or both by a Hadamard matrix inside each head before "
             "quantization; head_dim must be a power of two"},
    {"kv.target", KEY_CHOICE, AT(target), "wkvq", .choices = "wkvq|llama.cpp-q4_0|llama.cpp-q4_1|fp8|transformers-quanto4|vllm-int4", .omit_default = true,
     .help = "the cache that will serve the model, and that is simulated: this program's, "
             "llama.cpp's of type q4_0 or q4_1, vLLM's and SGLang's FP8, transformers' "
             "with quanto and 4 bits, or vLLM's int4_per_token_head; another engine's "
             "decides every other key of kv"},

    {"activations.bits", KEY_BITS, AT(activation_bits), "16",
     .help = "bits of the projections' inputs, rounded per token, for comparisons with W4A4; "
             "16 leaves them unquantized"},

    {"crr.blocks", KEY_INT, AT(crr_blocks), "5", RANGE_CRR_BLOCKS,
     .help = "number of full-precision blocks after the trained one that the loss passes "
             "through; 0: local loss"},
    {"crr.terms", KEY_CHOICE, AT(crr_terms), "last", .choices = "last|all",
     .help = "compare the outputs after the last of them, or after each"},
    {"crr.loss", KEY_CHOICE, AT(crr_loss), "mae", .choices = "mae|mse",
     .help = "mean absolute or mean squared error"},

    {"optimizer.lr_clip", KEY_REAL, AT(lr_clip), "0.2", 0, 10,
     .help = "learning rate of the clipping parameters"},
    {"optimizer.lr_round", KEY_REAL, AT(lr_round), "0", 0, 1,
     .help = "signed step of the rounding offsets, which range from -0.5 to 0.5; 0: one "
             "divided by a block's steps"},
    {"optimizer.lr_smooth", KEY_REAL, AT(lr_smooth), "0.01", 0, 10,
     .help = "learning rate of the logarithm of the smoothing factors"},
    {"optimizer.lr_shift", KEY_REAL, AT(lr_shift), "0.01", 0, 10,
     .help = "learning rate of the shift"},
    {"optimizer.schedule", KEY_CHOICE, AT(schedule), "cosine", .choices = "constant|cosine",
     .help = "cosine decays to 0 over a block's steps"},
    {"optimizer.weight_decay", KEY_REAL, AT(weight_decay), "0", 0, 1,
     .help = "AdamW's decoupled decay"},

    {"refine.samples", KEY_INT, AT(refine.samples), "0", 0, REFINE_SAMPLES_MAX, .omit_default = true,
     .help = "number of windows for end-to-end refinement after the last block; 0: none"},
    {"refine.seqlen", KEY_INT, AT(refine.seqlen), "1024", RANGE_REFINE_SEQLEN, .omit_default = true,
     .help = "tokens per window of refinement"},
    {"refine.epochs", KEY_INT, AT(refine.epochs), "1", RANGE_REFINE_EPOCHS, .omit_default = true,
     .help = "passes over the windows of refinement"},
    {"refine.batch", KEY_INT, AT(refine.batch), "2", RANGE_REFINE_BATCH, .omit_default = true,
     .help = "windows per step of refinement"},
    {"refine.guard", KEY_INT, AT(refine.guard), "8", RANGE_REFINE_GUARD, .omit_default = true,
     .help = "further windows that refinement does not learn from; the point with the least "
             "loss on them is kept, at worst the calibrated start"},
    {"refine.learn", KEY_CHOICE, AT(refine.learn), "auto", .omit_default = true,
     .choices = "auto|norms+cache|scales|scales+norms|scales+norms+cache|scales+norms+cache+rounding",
     .help = "what refinement learns: scales of weight groups, gains of norms, smoothing and "
             "shift of the cache, codes of the weights; auto: norms+cache with "
             "--weights-from, else scales+norms+cache, in both without the cache if kv.learn is false"},
    {"refine.lr_scales", KEY_REAL, AT(refine.lr_scales), "0.003", 0, 1, .omit_default = true,
     .help = "learning rate of the logarithm of the weights' scales"},
    {"refine.lr_norms", KEY_REAL, AT(refine.lr_norms), "0.001", 0, 1, .omit_default = true,
     .help = "learning rate of the norms' gains"},
    {"refine.lr_smooth", KEY_REAL, AT(refine.lr_smooth), "0.002", 0, 1, .omit_default = true,
     .help = "learning rate of the logarithm of the smoothing factors in refinement"},
    {"refine.lr_shift", KEY_REAL, AT(refine.lr_shift), "0.002", 0, 1, .omit_default = true,
     .help = "learning rate of the shift in refinement"},
    {"refine.lr_round", KEY_REAL, AT(refine.lr_round), "0.01", 0, 0.9, .omit_default = true, .least = 0.001,
     .why = "smaller steps round away in the offsets, which are fp16",
     .help = "signed step of the weights' places on the grid of their codes in refinement; "
             "offsets from a code are fp16, which have steps of 0.0002 near half a code"},
    {"refine.ce", KEY_REAL, AT(refine.ce), "0", 0, 1, .omit_default = true,
     .help = "share of the text's cross entropy in the loss of refinement; the rest is the "
             "divergence from the full-precision model"},

    {"run.device", KEY_CHOICE, AT(device), "cpu", .choices = CHOICES_DEVICE, .affects_speed_only = true,
     .help = "cuda: one NVIDIA GPU; ref: the slow reference that defines the results"},
    {"run.threads", KEY_INT, AT(threads), "0", 0, 4096, .affects_speed_only = true,
     .help = "0: one per processor that the process may use, by its affinity and control "
             "group"},
    {"run.compute", KEY_CHOICE, AT(compute), "auto", .choices = CHOICES_COMPUTE,
     .help = "type of activations and matrix operands; auto selects bf16 where the "
             "device multiplies it faster than f32, and f32 for evaluation and the packed "
             "runtime"},
    {"run.memory", KEY_BYTES, AT(memory), "auto", .affects_speed_only = true,
     .help = "memory budget of the process, as in 8G; larger streams go to disk; auto: "
             "75% of the free memory, within the limits of the process and its control "
             "group"},
    {"run.device_memory", KEY_BYTES, AT(device_memory), "auto", .affects_speed_only = true,
     .help = "cuda: memory of the GPU to plan for, as in 24G; auto: all free memory of "
             "the GPU"},
};
/* clang-format on */
const int recipe_n_keys = ARRAY_LEN(recipe_key);

static const void *field(const struct recipe *r, const struct recipe_key *k)
{
    return (const char *)r + k->offset;
}

/* Writes the value as text, for kinds that fit a fixed buffer. */
static void value_text(char *out, size_t n, const struct recipe *r,
                       const struct recipe_key *k)
{
    const void *f = field(r, k);
    switch (k->kind) {
    case KEY_INT:
    case KEY_BITS:
        snprintf(out, n, "%" PRId64, *(const int64_t *)f);
        break;
    case KEY_COUNT:
        if (*(const int64_t *)f == RECIPE_AUTO)
            snprintf(out, n, "auto");
        else
            snprintf(out, n, "%" PRId64, *(const int64_t *)f);
        break;
    case KEY_REAL:
        snprintf(out, n, "%.10g", *(const double *)f);
        break;
    case KEY_BOOL:
        snprintf(out, n, "%s", *(const bool *)f ? "true" : "false");
        break;
    case KEY_CHOICE:
        snprintf(out, n, "%s", opt_choice_name(k->choices, *(const int *)f));
        break;
    case KEY_BYTES:
        if (*(const uint64_t *)f)
            snprintf(out, n, "%" PRIu64, *(const uint64_t *)f);
        else
            snprintf(out, n, "auto");
        break;
    case KEY_NAME:
        snprintf(out, n, "%s", (const char *)f);
        break;
    case KEY_MIX: /* handled by recipe_text */
    case KEY_FILES:
        snprintf(out, n, "%s", "");
        break;
    }
}

enum err recipe_text(char **out, const struct recipe *r, const struct recipe_key *k)
{
    const struct recipe_files *files = field(r, k);
    char text[128];
    if (k->kind == KEY_MIX)
        return mix_text(out, *(struct mix *const *)field(r, k));
    if (k->kind == KEY_FILES)
        return mem_strdup(out, files->n ? files->path[0] : "");
    value_text(text, sizeof(text), r, k);
    return mem_strdup(out, text);
}

static json_t *files_json(const struct recipe_files *files)
{
    json_t *list = json_array();
    for (int i = 0; list && i < files->n; i++)
        json_array_append_new(list, recipe_files_share(files, i) < 0
                                        ? json_string(files->path[i])
                                        : json_pack("{s:s, s:f}", "file", files->path[i],
                                                    "share", recipe_files_share(files, i)));
    return list;
}

/* Returns the value as JSON. NULL: out of memory. */
static json_t *mix_json(const struct mix *m)
{
    char *text;
    if (mix_text(&text, m))
        return NULL;
    json_t *o = json_string(text);
    mem_free(text);
    return o;
}

static json_t *value_json(const struct recipe *r, const struct recipe_key *k)
{
    char text[128];
    const void *f = field(r, k);
    switch (k->kind) {
    case KEY_INT:
    case KEY_BITS:
        return json_integer(*(const int64_t *)f);
    case KEY_COUNT:
        return json_integer(recipe_eval_samples(r));
    case KEY_REAL:
        return json_real(*(const double *)f);
    case KEY_BOOL:
        return json_boolean(*(const bool *)f);
    case KEY_BYTES:
        if (*(const uint64_t *)f)
            return json_integer((json_int_t) * (const uint64_t *)f);
        return json_string("auto");
    case KEY_CHOICE:
    case KEY_NAME:
        value_text(text, sizeof(text), r, k);
        return json_string(text);
    case KEY_MIX:
        return mix_json(*(struct mix *const *)f);
    case KEY_FILES:
        return files_json(f);
    }
    return NULL;
}

/* Returns the length of the section's name: that of "weights" in "weights.bits". */
static int section_length(const struct recipe_key *k)
{
    return (int)strcspn(k->name, ".");
}

/* Returns whether the key's value is its default. */
static bool is_default(const struct recipe *r, const struct recipe_key *k)
{
    char text[128];
    const struct recipe_files *files = field(r, k);
    if (k->kind == KEY_MIX)
        return !*(struct mix *const *)field(r, k);
    if (k->kind == KEY_FILES)
        return !files->n;
    value_text(text, sizeof(text), r, k);
    return !strcmp(text, k->value);
}

/* Returns whether JSON omits the key. A KEY_COUNT is omitted not at its default, but where
 * it has the effect that was fixed before the key existed. */
static bool is_omitted(const struct recipe *r, const struct recipe_key *k)
{
    if (k->kind == KEY_COUNT)
        return !recipe_eval_samples(r);
    return k->omit_default && is_default(r, k);
}

enum err recipe_json(json_t **out, const struct recipe *r, bool identity)
{
    json_t *root = json_object();
    for (int i = 0; root && i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        char section[32];
        if ((identity && k->affects_speed_only) || is_omitted(r, k))
            continue;
        snprintf(section, sizeof(section), "%.*s", section_length(k), k->name);
        json_t *o = json_object_get(root, section);
        if (!o) {
            o = json_object();
            if (json_object_set_new(root, section, o))
                o = NULL; /* released */
        }
        if (json_object_set_new(o, k->name + section_length(k) + 1, value_json(r, k))) {
            json_decref(root);
            root = NULL;
        }
    }
    FAIL_IF(!root, ERR_MEMORY, "out of memory for the configuration");
    *out = root;
    return OK;
}

/* Returns whether the key has the effect of its default, which is that of others for auto. */
static bool acts_as_default(const struct recipe *r, const struct recipe_key *k)
{
    struct recipe plain = *r;
    plain.eval_samples = RECIPE_AUTO;
    return k->kind == KEY_COUNT ? recipe_eval_samples(r) == recipe_eval_samples(&plain)
                                : is_default(r, k);
}

enum err recipe_changes(json_t **out, const struct recipe *r)
{
    json_t *o = json_object();
    for (int i = 0; o && i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        if (k->affects_speed_only || acts_as_default(r, k))
            continue;
        if (json_object_set_new(o, k->name, value_json(r, k))) {
            json_decref(o);
            o = NULL;
        }
    }
    FAIL_IF(!o, ERR_MEMORY, "out of memory for the configuration");
    *out = o;
    return OK;
}

/* Writes the allowed values for the reference, such as "1 to 255" or "rtn, lwc, gptq". */
static void range_text(char *out, size_t n, const struct recipe_key *k)
{
    switch (k->kind) {
    case KEY_INT:
        if (k->lo == k->hi)
            snprintf(out, n, "%.0f", k->lo);
        else
            snprintf(out, n, "%.0f to %.0f", k->lo, k->hi);
        break;
    case KEY_COUNT:
        snprintf(out, n, "auto, or %.0f to %.0f", k->lo, k->hi);
        break;
    case KEY_REAL:
        if (k->least > 0)
            snprintf(out, n, "0, or %g to %g", k->least, k->hi);
        else
            snprintf(out, n, "%g to %g", k->lo, k->hi);
        break;
    case KEY_BOOL:
        snprintf(out, n, "true or false");
        break;
    case KEY_CHOICE:
        opt_choices_text(out, n, k->choices);
        break;
    case KEY_BITS:
        snprintf(out, n, "2 to 8, or 16");
        break;
    case KEY_BYTES:
        snprintf(out, n, "auto or a size: 8G and 8GiB are 2^33 bytes, 8GB are 8*10^9");
        break;
    case KEY_MIX:
        snprintf(out, n, "rules in quotes");
        break;
    case KEY_NAME:
        snprintf(out, n, "a name");
        break;
    case KEY_FILES:
        snprintf(out, n, "file name, or list of them or of {file: NAME, share: NUMBER}");
        break;
    }
}

void recipe_print_reference(FILE *f)
{
    const char *last = "";
    fprintf(
        f, "# Every key with its default. The line before a key explains it and lists the\n"
           "# allowed values in brackets. The same names work with --set, as in\n"
           "# --set weights.group_size=64. Printed by `wkvq --print-reference`.\n"
           "#\n"
           "# preset: NAME at the top sets several keys first: paper-w4 (weights only),\n"
           "# paper-w4kv4 (WKVQuant), paper-w4a4 (activations as well, for comparison),\n"
           "# kivi-like (cache only, keys per channel, in simulation).\n");
    for (int i = 0; i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        const int n = section_length(k);
        char range[128];
        if (strncmp(last, k->name, (size_t)n + 1))
            fprintf(f, "\n%.*s:\n", n, k->name);
        last = k->name;
        range_text(range, sizeof(range), k);
        fprintf(f, "  # %s [%s]\n  %s: %s\n", k->help, range, k->name + n + 1,
                k->kind == KEY_FILES                        ? "[]"
                : k->kind == KEY_MIX || k->kind == KEY_NAME ? "\"\""
                                                            : k->value);
    }
}

void recipe_print_key_words(void)
{
    printf("preset=\n");
    for (int i = 0; i < recipe_n_keys; i++)
        printf("%s=\n", recipe_key[i].name);
}

void recipe_print_value_words(void)
{
    printf("        preset) words=\"");
    for (size_t i = 0; recipe_preset_name(i); i++)
        printf("%s\n", recipe_preset_name(i));
    printf("\" ;;\n");
    for (int i = 0; i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        const char *choices = k->kind == KEY_BOOL ? "true|false" : k->choices;
        if (!choices)
            continue;
        printf("        %s) words=\"", k->name);
        opt_print_choices(choices);
        printf("\" ;;\n");
    }
}

void recipe_print_man(void)
{
    printf(
        ".TP\n.B preset\nsets several keys before all others: paper\\-w4 (weights only), "
        "paper\\-w4kv4 (WKVQuant), paper\\-w4a4 (activations as well), or kivi\\-like "
        "(cache only, in simulation) (default: none).\n");
    for (int i = 0; i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        char range[128];
        range_text(range, sizeof(range), k);
        printf(".TP\n.B %s\n%s: %s (default: %s).\n", k->name, k->help, range,
               *k->value ? k->value : "none");
    }
}
