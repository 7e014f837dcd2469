/* SPDX-License-Identifier: MIT */
#include "convert/verify/verify.h"
#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/plural.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/job.h"
#include "tools/pipeline/stages.h"
#include "tools/pipeline/verify_report.h"
#include "tools/state/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Verification:"},
    {OPT_TEXT, .name = "against", .arg = "MODEL_DIR", .offset = offsetof(struct args, against),
     .help = "Checkpoint that the artifact was made from; every weight is compared with "
             "it bit for bit (default: none, part 2 is skipped)"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Calibration that the scales came from; without --against they are compared alone "
             "(default: none, the artifact's own scales are trusted)"},
    {OPT_INT, .name = "logit-tokens", .arg = "N", .offset = offsetof(struct args, logit_tokens),
     .value = "256", .lo = 1, .hi = 1 << 20,
     .help = "Tokens of part 3, which decodes them one by one and compares logits and "
             "cache; up to four times as many where sink and window would leave none packed"},
    {OPT_INT, 'w', "windows", "N", offsetof(struct args, windows), "1", 1, 1 << 20,
     .help = "Windows of part 4, which compares perplexity by decode with that of the "
             "simulation"},
    {OPT_INT, .name = "ctx", .arg = "N", .offset = offsetof(struct args, ctx), .value = "512",
     .lo = 2, .hi = 1 << 24,
     .help = "Tokens of such a window; the default becomes shorter where the model is"},
    {OPT_REAL, .name = "max-kl", .arg = "NATS", .offset = offsetof(struct args, max_kl),
     .value = "0.001", .lo = 1e-12, .hi = 100,
     .help = "Largest mean KL divergence of the runtime's logits from the simulation's"},
    {OPT_REAL, .name = "max-gap", .arg = "SHARE", .offset = offsetof(struct args, max_gap),
     .value = "0.005", .lo = 1e-12, .hi = 100,
     .help = "Largest relative gap of the two perplexities, beyond three standard errors"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

/* Reads the text with the artifact's own tokenizer. */
static enum err read_text(struct job *j)
{
    struct artifact *art = NULL;
    if (!j->recipe.data.n)
        return OK;
    TRY(job_refuse_shares(j, "verification"));
    TRY(artifact_open(&art, j->model_dir, 0));
    j->arch = *artifact_arch(art);
    artifact_close(&art);
    return job_read_text(j);
}

static bool is_given(const struct args *a, const char *name)
{
    const struct opt *o = options;
    while (!o->name || strcmp(o->name, name))
        o++;
    return opt_is_given(a, o);
}

/* A length that was given must fit the model. The defaults become as short as it is. */
static enum err check_lengths(const struct job *j, const struct args *a)
{
    enum err err = OK;
    if (!j->ids.n)
        return OK;
    if (is_given(a, "ctx"))
        err = arch_check_length(&j->arch, a->ctx);
    if (err)
        return err_add(err, "--ctx: ");
    if (is_given(a, "logit-tokens"))
        err = arch_check_length(&j->arch, a->logit_tokens);
    return err ? err_add(err, "--logit-tokens: ") : OK;
}

/* One window is read even if the text does not fill it. */
static void warn_of_few(const struct job *j, const struct args *a)
{
    const int64_t n = (int64_t)j->ids.n;
    const int64_t ctx = a->ctx < j->arch.max_positions ? a->ctx : j->arch.max_positions;
    if (!n)
        return;
    if (n < ctx)
        log_warn("the text has %" PRId64 " token%s, fewer than a window of %" PRId64
                 ": logits and perplexity are compared on these alone; give more text",
                 n, plural(n), ctx);
    else if (n / ctx < a->windows)
        log_warn("--windows %" PRId64 ": the text has %" PRId64, a->windows, n / ctx);
    if (n < a->logit_tokens && is_given(a, "logit-tokens"))
        log_warn("--logit-tokens %" PRId64 ": the text has %" PRId64, a->logit_tokens, n);
}

static enum err check_keys(const struct args *a)
{
    struct artifact *art = NULL;
    if (!a->config && !a->set.n)
        return OK;
    TRY(artifact_open(&art, a->pos.item[0], 0));
    const enum err err = command_check_artifact(a, art, false);
    artifact_close(&art);
    return err;
}

static enum err open_state(struct state **s, const struct args *a)
{
    struct artifact *art = NULL;
    if (!a->state)
        return OK;
    TRY(artifact_open(&art, a->pos.item[0], 0));
    const enum err err = state_open_read(s, a->state, artifact_arch(art));
    artifact_close(&art);
    TRY(err);
    TRY(state_check_finished(*s));
    return OK;
}

static enum err verify(struct verify_report *r, const struct job *j, const struct args *a,
                       struct state *s)
{
    const struct verify_settings settings = {
        .against = a->against,
        .state = s ? state_source(s) : NULL,
        .ids = j->ids.n ? j->ids.id : NULL,
        .n_ids = (int64_t)j->ids.n,
        .logit_tokens = a->logit_tokens,
        .windows = a->windows,
        .ctx = a->ctx,
        .max_kl = a->max_kl,
        .max_ppl_gap = a->max_gap,
        .act = DT_F32,
        .threads = (int)j->recipe.threads,
    };
    log_verbose("verifying %s", j->model_dir);
    return verify_run(r, j->model_dir, &settings);
}

/* Writes what the manifest says of the artifact's checkpoint. was: its CRC; "" if it has none,
 * because its scales follow from the weights alone. */
static enum err read_checkpoint(char was[16], bool *given, const char *dir)
{
    json_t *root = NULL;
    struct artifact *art = NULL;
    TRY(artifact_open(&art, dir, 0));
    const char *text = artifact_manifest(art);
    const enum err err = json_parse(&root, text, strlen(text), "manifest.json");
    const json_t *from = json_object_get(root, "provenance");
    snprintf(was, 16, "%s", json_member_text(json_object_get(from, "checkpoint"), "crc32"));
    *given = artifact_weight_spec(art)->method == WEIGHT_GIVEN;
    json_decref(root);
    artifact_close(&art);
    return err;
}

/* Fails if weights differ and --against has other files than the checkpoint of the manifest: this
 * explains the difference, so the artifact may be sound. A copy of the same weights in other
 * files passes, so the CRC is asked only where some differ. */
static enum err check_checkpoint(const struct args *a, const struct verify_report *r)
{
    char was[16], is[16];
    bool given;
    struct hf_model *m = NULL;
    uint32_t crc = 0;
    if (r->weights != VERIFY_FAIL || !a->against)
        return OK;
    TRY(read_checkpoint(was, &given, a->pos.item[0]));
    TRY(given ? hf_open_packed(&m, a->against, VERIFY_WANTS_GIVEN)
              : hf_open(&m, a->against));
    const enum err err = hf_identity(&crc, m, true);
    hf_close(&m);
    TRY(err);
    snprintf(is, sizeof(is), "%08" PRIx32, crc);
    FAIL_IF(*was && strcmp(was, is), ERR_MISMATCH,
            "%s: its config.json or tensor files are not those that %s was made from: "
            "checkpoint.crc32 is %s in the manifest and %s in %s",
            a->against, a->pos.item[0], was, is, a->against);
    return OK;
}

/* Fails if a part does and STATE is not the calibration of the manifest: this explains the failure,
 * so the artifact may be sound. A calibration that has another mark and the same values passes. */
static enum err check_state(const struct args *a, const struct verify_report *r,
                            const struct state *s)
{
    char was[STATE_MARK], is[STATE_MARK];
    const bool differs = r->weights == VERIFY_FAIL || r->logits == VERIFY_FAIL ||
                         r->perplexity == VERIFY_FAIL;
    if (!s || !differs || r->structure == VERIFY_FAIL)
        return OK;
    TRY(stage_artifact_mark(was, a->pos.item[0]));
    state_mark(is, s);
    FAIL_IF(!*was, ERR_MISMATCH,
            "%s: its manifest names no calibration, and it does not agree with %s; leave "
            "--state out, or give the calibration that it was made from",
            a->pos.item[0], a->state);
    FAIL_IF(strcmp(was, is), ERR_MISMATCH,
            "%s: is not the calibration that %s was made from: provenance.state is %s in "
            "the manifest, and the state's mark is %s; give that calibration, or leave "
            "--state out",
            a->state, a->pos.item[0], was, is);
    return OK;
}

static enum err print_json(const char *artifact, const struct verify_report *r)
{
    json_t *o = verify_report_json(artifact, r);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static enum err print_report(const struct args *a, const struct verify_report *r)
{
    if (a->json)
        return print_json(a->pos.item[0], r);
    verify_report_print(r, a->against, a->state, a->data.n > 0);
    return OK;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    struct verify_report r;
    TRY(command_check_cpu(a, "verify"));
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    TRY_OUT(check_keys(a));
    TRY_OUT(read_text(&j));
    TRY_OUT(check_lengths(&j, a));
    warn_of_few(&j, a);
    TRY_OUT(open_state(&s, a));
    TRY_OUT(verify(&r, &j, a, s));
    TRY_OUT(print_report(a, &r));
    TRY_OUT(check_state(a, &r, s));
    TRY_OUT(check_checkpoint(a, &r));
    if (!r.passed)
        err = err_set(ERR_VERIFY, __FILE__, __LINE__, "%s: verification failed: %s%s",
                      a->pos.item[0], r.first_difference,
                      r.structure == VERIFY_FAIL
                          ? "; copy the artifact again, or make it again"
                          : "");
out:
    state_close(&s);
    job_close(&j);
    return err;
}

const struct command cmd_verify = {
    .name = "verify",
    .operands = "ARTIFACT",
    .summary = "Check an artifact against its checkpoint, state and simulation",
    .details =
        "Four parts: 1. files, checksums and finite values. 2. Every packed weight "
        "against the checkpoint, bit for bit (--against). 3. Logits and cache of the "
        "packed runtime, token by token, against the simulation (--data). 4. Its "
        "perplexity against the simulation's. The exit status is 3 if a part fails. It is 2 if "
        "weights differ and the manifest says that --against has other files than the artifact "
        "was made from, or if a part fails and --state is another calibration than the "
        "manifest's.\n\n"
        "  wkvq verify SmolLM2-135M-w4kv4 --against SmolLM2-135M --data wiki.test.raw\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = 1,
    .run = run,
};
