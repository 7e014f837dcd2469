/* SPDX-License-Identifier: MIT */
#include "tools/cli/opt.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/mem.h"
#include "tools/cli/choices.h"
#include "tools/cli/hub_cache.h"
#include "tools/cli/nearest.h"
#include "tools/cli/size.h"

#include <argp.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_BASE 512 /* keys of options without a short form */
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

/* clang-format off */
const struct opt opt_report[] = {
    {OPT_HEADING, .help = "Output:"},
    {OPT_FLAG, .name = "json", .offset = offsetof(struct args, json),
     .help = "Print one JSON value on standard output and nothing else"},
    {OPT_FLAG, 'q', "quiet", .offset = offsetof(struct args, quiet),
     .help = "Print only warnings and errors on standard error"},
    {OPT_FLAG, 'v', "verbose", .offset = offsetof(struct args, verbose),
     .help = "Print more on standard error"},
    {0},
};

const struct opt opt_recipe[] = {
    {OPT_HEADING, .help = "Configuration:"},
    {OPT_TEXT, 'c', "config", "FILE.yaml", offsetof(struct args, config),
     .help = "Read the configuration from FILE.yaml (default: every key's default; "
             "configs/reference.yaml lists them)"},
    {OPT_LIST, 's', "set", "KEY=VALUE", offsetof(struct args, set),
     .help = "Override one key, as in --set weights.group_size=64; repeatable"},
    {OPT_INT, 'j', "threads", "N", offsetof(struct args, threads), "-1", -1, 4096,
     .help = "Short for --set run.threads=N; -1 keeps the configuration's value"},
    {OPT_TEXT, .name = "device", .arg = "NAME", .offset = offsetof(struct args, device),
     .choices = CHOICES_DEVICE,
     .help = "Short for --set run.device=NAME (default: the configuration's)"},
    {OPT_BYTES, .name = "memory", .arg = "SIZE", .offset = offsetof(struct args, memory),
     .value = "0", .lo = SIZE_BUDGET_MIN,
     .help = "Short for --set run.memory=SIZE, as in 8G, which is 8GiB (8GB is less); 0 keeps "
             "the configuration's value"},
    {0},
};

const struct opt opt_data[] = {
    {OPT_HEADING, .help = "Text:"},
    {OPT_LIST, 'd', "data", "FILE", offsetof(struct args, data),
     .help = "Text to read: plain text or JSON rows, also compressed or in an archive; - "
             "is standard input; repeatable (default: the configuration's "
             "calibration.data). FILE:SHARE for each: windows of calibration are drawn "
             "from each file in these proportions"},
    {OPT_TEXT, .name = "text-field", .arg = "NAME", .offset = offsetof(struct args, text_field),
     .help = "Field of a JSON row that holds its text or chat messages (default: text, "
             "else content, else messages)"},
    {OPT_TEXT, .name = "join", .arg = "RULE", .offset = offsetof(struct args, join),
     .choices = CHOICES_JOIN,
     .help = "How a file becomes one string: rows joined by two newlines (as in the "
             "literature; auto for .raw and .tokens), the file unchanged, or lines joined "
             "by one space (PTB) (default: the configuration's)"},
    {OPT_TEXT, .name = "bos", .arg = "RULE", .offset = offsetof(struct args, bos),
     .choices = CHOICES_BOS,
     .help = "BOS token before the text; auto does as the model's tokenizer does "
             "(default: the configuration's)"},
    {0},
};

const struct opt opt_finish[] = {
    {OPT_FLAG, .name = "keep-state", .offset = offsetof(struct args, keep_state),
     .help = "Keep the state after the artifact is verified"},
    {OPT_FLAG, .name = "plan", .offset = offsetof(struct args, plan),
     .help = "Print the estimated memory and time, from one measured step, and stop"},
    {OPT_FLAG, 'f', "force", .offset = offsetof(struct args, force),
     .help = "Overwrite an existing artifact"},
    {0},
};

const struct opt opt_shard[] = {
    {OPT_BYTES, .name = "shard", .arg = "SIZE", .offset = offsetof(struct args, shard_bytes),
     .value = "0",
     .help = "Split the weights into files of at most SIZE, as in 500MB or 4GiB; 0 means 5GB"},
    {0},
};

const struct opt opt_given[] = {
    {OPT_TEXT, .name = "weights-from", .arg = "DIR", .offset = offsetof(struct args, weights_from),
     .help = "Take codes, scales and zero points of the projections from DIR, a checkpoint that "
             "another tool quantized (default: none). MODEL_DIR is DIR itself, or the "
             "full-precision checkpoint, whose outputs are then the target of calibration and "
             "refinement"},
    {0},
};

const struct opt opt_progress[] = {
    {OPT_TEXT, .name = "log-json", .arg = "FILE", .offset = offsetof(struct args, log_json),
     .help = "Append progress to FILE, one JSON object per line (default: none). Those of a "
             "sweep have the cell's name in \"cell\""},
    {0},
};
/* clang-format on */

/* The parser's input, which argp passes from call to call. */
struct parse {
    struct args *args;
    const struct command *cmd;
    const struct opt *opt[OPTS_MAX];
    struct argp_option argp[OPTS_MAX + 1];
    char *doc[OPTS_MAX];
    int n;
};

int opt_choice(const char *choices, const char *word)
{
    const size_t n = strlen(word);
    int index = 0;
    for (const char *p = choices; p && *p; index++) {
        const size_t length = strcspn(p, "|");
        if (length == n && !memcmp(p, word, n))
            return index;
        p += length;
        p += *p == '|';
    }
    return -1;
}

const char *opt_choice_name(const char *choices, int index)
{
    static _Thread_local char name[32];
    while (index-- > 0 && strchr(choices, '|'))
        choices = strchr(choices, '|') + 1;
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(choices, "|"), choices);
    return name;
}

void opt_choices_text(char *out, size_t n, const char *choices)
{
    size_t used = 0;
    for (const char *p = choices; *p && used + 3 < n; p++) {
        if (*p == '|') {
            out[used++] = ',';
            out[used++] = ' ';
        } else {
            out[used++] = *p;
        }
    }
    out[used] = '\0';
}

/* 0 stands for the default of an option, below every bound. */
static const char *store_bytes(uint64_t *out, const char *text, double least, char *buffer,
                               size_t n)
{
    uint64_t bytes;
    if (size_parse(&bytes, text) && (!bytes || (double)bytes >= least)) {
        *out = bytes;
        return NULL;
    }
    size_wanted(buffer, n, text, least, "");
    return buffer;
}

/* Stores text. Returns NULL, or what is wanted instead; buffer holds that sentence. */
static const char *store(const struct opt *o, void *field, const char *text, char *buffer,
                         size_t n)
{
    char *end;
    switch (o->kind) {
    case OPT_HEADING:
        return NULL;
    case OPT_FLAG:
        *(bool *)field = true;
        return NULL;
    case OPT_TEXT:
        if (o->choices && opt_choice(o->choices, text) < 0) {
            char list[256];
            opt_choices_text(list, sizeof(list), o->choices);
            snprintf(buffer, n, "want one of %s", list);
            return buffer;
        }
        *(const char **)field = text;
        return NULL;
    case OPT_MAYBE:
        *(const char **)field = text ? text : "";
        return NULL;
    case OPT_INT: {
        const double value = strtod(text, &end);
        snprintf(buffer, n, "want a whole number from %.0f to %.0f", o->lo, o->hi);
        if (end == text || *end || !(value >= o->lo && value <= o->hi) ||
            value != floor(value))
            return buffer;
        *(int64_t *)field = (int64_t)value;
        return NULL;
    }
    case OPT_REAL: {
        const double value = strtod(text, &end);
        snprintf(buffer, n, "want a number from %g to %g", o->lo, o->hi);
        if (end == text || *end || !(value >= o->lo && value <= o->hi))
            return buffer;
        *(double *)field = value;
        return NULL;
    }
    case OPT_BYTES:
        return store_bytes(field, text, o->lo, buffer, n);
    case OPT_LIST: {
        struct text_list *list = field;
        if (list->n == TEXT_LIST_MAX)
            return "given more than " STRING(TEXT_LIST_MAX) " times";
        list->item[list->n++] = text;
        return NULL;
    }
    }
    return NULL;
}

bool opt_is_given(const struct args *a, const struct opt *o)
{
    for (int i = 0; i < a->n_given; i++)
        if (a->given[i] == o)
            return true;
    return false;
}

/* Refuses an operand, and names the options whose values are often given without a name. */
static void refuse_operand(const struct argp_state *state, const char *arg)
{
    static const char *const often[] = {"prompt", "data", "output"};
    const struct parse *p = state->input;
    char named[96] = "";
    size_t used = 0;
    for (size_t k = 0; k < ARRAY_LEN(often); k++)
        for (int i = 0; i < p->n; i++)
            if (p->opt[i]->name && !strcmp(p->opt[i]->name, often[k]))
                used += (size_t)snprintf(named + used, sizeof(named) - used, "%s--%s %s",
                                         used ? " or " : "; did you mean ", often[k],
                                         p->opt[i]->arg);
    argp_error(state, "%s: one argument too many%s%s", arg, named, used ? "?" : "");
}

static error_t parse_key(int key, char *arg, struct argp_state *state)
{
    struct parse *p = state->input;
    char buffer[320];
    switch (key) {
    case ARGP_KEY_ARG:
        if (p->args->pos.n >= p->cmd->max_pos)
            refuse_operand(state, arg);
        p->args->pos.item[p->args->pos.n++] = arg;
        return 0;
    case ARGP_KEY_END:
        if (p->args->pos.n < p->cmd->min_pos)
            argp_error(state, "missing argument: want %s", p->cmd->operands);
        return 0;
    }
    for (int i = 0; i < p->n; i++) {
        if (p->argp[i].key != key || !key)
            continue;
        void *field = (char *)p->args + p->opt[i]->offset;
        const char *wanted = store(p->opt[i], field, arg, buffer, sizeof(buffer));
        if (wanted)
            argp_error(state, "--%s=%s: %s", p->opt[i]->name, arg ? arg : "", wanted);
        if (!opt_is_given(p->args, p->opt[i]))
            p->args->given[p->args->n_given++] = p->opt[i];
        return 0;
    }
    return ARGP_ERR_UNKNOWN;
}

/* Makes the help line with its default. argp keeps the pointer, so the line lives as long
 * as p. */
static char *help_line(const struct opt *o)
{
    char *line = NULL;
    int n;
    if (o->kind == OPT_HEADING)
        n = asprintf(&line, "%s", o->help);
    else if (o->kind == OPT_FLAG)
        n = asprintf(&line, "%s (default: off)", o->help);
    else if (o->value)
        n = asprintf(&line, "%s (default: %s)", o->help, o->value);
    else
        n = asprintf(&line, "%s", o->help);
    return n < 0 ? NULL : line;
}

static void add_option(struct parse *p, const struct opt *o, int group)
{
    if (p->n == OPTS_MAX) /* abort, since a silently missing option would be worse */
        abort();
    const int i = p->n++;
    p->opt[i] = o;
    p->doc[i] = help_line(o);
    p->argp[i] = (struct argp_option){
        .name = o->name,
        .key = o->kind == OPT_HEADING ? 0
               : o->letter            ? o->letter
                                      : KEY_BASE + i,
        .arg = o->arg,
        .flags = o->kind == OPT_MAYBE ? OPTION_ARG_OPTIONAL : 0,
        .doc = p->doc[i],
        .group = group,
    };
}

static void add_tables(struct parse *p, const struct command *cmd)
{
    int group = 0;
    for (const struct opt *const *table = cmd->groups; table && *table; table++) {
        for (const struct opt *o = *table; o->help; o++) {
            group += o->kind == OPT_HEADING;
            add_option(p, o, group);
        }
    }
}

static void store_defaults(struct parse *p)
{
    char buffer[320];
    for (int i = 0; i < p->n; i++) {
        const struct opt *o = p->opt[i];
        if (o->value)
            store(o, (char *)p->args + o->offset, o->value, buffer, sizeof(buffer));
    }
}

static const char hub_help[] =
    "A model may be named as on the Hugging Face hub, org/name or org/name@revision, if no "
    "such directory exists. It is read from the local cache, and nothing is downloaded.";

/* Returns what is said about a command after its summary. Release it with free(). */
static char *details_of(const struct command *cmd)
{
    char *text = NULL;
    const char *own = cmd->details ? cmd->details : "";
    const int n = asprintf(&text, "%s%s%s", cmd->model ? hub_help : "",
                           cmd->model && *own ? "\n\n" : "", own);
    return n < 0 ? NULL : text;
}

/* A prompt is no file's name: the command refuses it in other words. */
static bool holds_prompt(const struct args *a, const char *text)
{
    return a->prompt && a->prompt >= text && a->prompt <= text + strlen(text);
}

enum err opt_need_utf8(const struct args *a, const char *what)
{
    for (int i = 1; i < a->argc; i++) {
        const char *text = a->argv[i];
        FAIL_IF(!holds_prompt(a, text) && !utf8_valid(text, strlen(text)), ERR_USAGE,
                "%s: the argument '%s' is not UTF-8, and JSON cannot hold it; give "
                "text in UTF-8, and if it names a file, rename that or make a link to it",
                what, text);
    }
    return OK;
}

enum err opt_find_models(struct args *a)
{
    const int at = a->cmd->model;
    const char **name[3] = {at > 0 && at <= a->pos.n ? &a->pos.item[at - 1] : NULL,
                            &a->model, &a->against};
    for (size_t i = 0; a->cmd->model && i < ARRAY_LEN(name); i++) {
        if (!name[i] || !*name[i])
            continue;
        TRY(hub_find(&a->model_path[i], *name[i]));
        *name[i] = a->model_path[i];
    }
    return OK;
}

void opt_free_models(struct args *a)
{
    for (size_t i = 0; i < ARRAY_LEN(a->model_path); i++)
        mem_free(a->model_path[i]);
}

void opt_parse(struct args *a, const struct command *cmd, int argc, char **argv)
{
    struct parse p = {.args = a, .cmd = cmd};
    char *doc = NULL, *details = details_of(cmd);
    *a = (struct args){.cmd = cmd, .argc = argc, .argv = argv, .threads = -1};
    add_tables(&p, cmd);
    store_defaults(&p);
    if (asprintf(&doc, "%s.\v%s", cmd->summary, details ? details : "") < 0)
        doc = NULL;
    free(details);
    const struct argp argp = {p.argp, parse_key, cmd->operands, doc, NULL, NULL, NULL};
    argp_err_exit_status = err_exit_status(ERR_USAGE);
    argp_parse(&argp, argc, argv, 0, NULL, &p);
    free(doc);
    for (int i = 0; i < p.n; i++)
        free(p.doc[i]);
}

/* --- unknown options ---------------------------------------------------------------- */

/* Options that argp adds. They end the command, whatever follows. */
static const struct opt opt_of_argp[] = {
    {OPT_FLAG, '?', "help", .help = ""}, {OPT_FLAG, .name = "usage", .help = ""}, {0}};

/* Returns the option with a name of n characters, or else the first whose name begins so, as
 * getopt_long() takes it; NULL: none. */
static const struct opt *find_long(const struct command *cmd, const char *name, size_t n)
{
    const struct opt *begins = NULL;
    for (const struct opt *const *table = cmd->groups; table && *table; table++)
        for (const struct opt *o = *table; o->help; o++) {
            if (!o->name || strncmp(o->name, name, n))
                continue;
            if (!o->name[n])
                return o;
            begins = begins ? begins : o;
        }
    for (const struct opt *o = opt_of_argp; o->help && !begins; o++)
        begins = strncmp(o->name, name, n) ? NULL : o;
    return begins;
}

static const struct opt *find_letter(const struct command *cmd, char letter)
{
    for (const struct opt *const *table = cmd->groups; table && *table; table++)
        for (const struct opt *o = *table; o->help; o++)
            if (o->letter == letter)
                return o;
    return NULL;
}

static bool takes_value(const struct opt *o)
{
    return o && o->kind != OPT_FLAG && o->kind != OPT_MAYBE;
}

/* Returns whether the value of letters such as "qo" is the next argument. */
static bool ends_with_value(const struct command *cmd, const char *letters)
{
    while (*letters && !takes_value(find_letter(cmd, *letters)))
        letters++;
    return *letters && !letters[1];
}

int opt_find_unknown(const struct command *cmd, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        const char *word = argv[i];
        if (word[0] != '-')
            continue;
        if (word[1] != '-') {
            i += ends_with_value(cmd, word + 1);
            continue;
        }
        const size_t n = strcspn(word + 2, "=");
        const struct opt *o = find_long(cmd, word + 2, n);
        if (!o)
            return i;
        if (o >= opt_of_argp && o < opt_of_argp + ARRAY_LEN(opt_of_argp))
            return 0;
        i += takes_value(o) && !word[2 + n];
    }
    return 0;
}

const char *opt_nearest(const struct command *cmd, const char *name)
{
    struct nearest best = {0};
    nearest_consider(&best, name, opt_of_argp[0].name);
    for (const struct opt *const *table = cmd->groups; table && *table; table++)
        for (const struct opt *o = *table; o->help; o++)
            if (o->name)
                nearest_consider(&best, name, o->name);
    return best.word;
}

bool opt_has(const struct command *cmd, const char *name)
{
    const struct opt *o = find_long(cmd, name, strlen(name));
    return o && !strcmp(o->name, name);
}

/* --- completion and the man page ---------------------------------------------------- */

void opt_print_choices(const char *choices)
{
    for (const char *p = choices; *p; p++)
        putchar(*p == '|' ? '\n' : *p);
}

void opt_print_value_words(const struct command *cmd)
{
    for (const struct opt *const *table = cmd->groups; table && *table; table++) {
        for (const struct opt *o = *table; o->help; o++) {
            if (!o->choices && !o->word)
                continue;
            printf("        ");
            if (o->letter)
                printf("-%c|", o->letter);
            printf("--%s) words=\"", o->name);
            if (o->choices)
                opt_print_choices(o->choices);
            for (size_t i = 0; o->word && o->word(i); i++)
                printf("%s\n", o->word(i));
            printf("\" ;;\n");
        }
    }
}

void opt_print_words(const struct command *cmd)
{
    for (const struct opt *const *table = cmd->groups; table && *table; table++) {
        for (const struct opt *o = *table; o->help; o++) {
            if (o->name)
                printf("--%s%s\n", o->name, o->arg && o->kind != OPT_MAYBE ? "=" : "");
        }
    }
    printf("--help\n");
}

/* Escapes hyphens, so that troff prints them as hyphen-minus that can be copied. */
void opt_print_troff(const char *text)
{
    for (const char *p = text; *p; p++) {
        if (*p == '-')
            putchar('\\');
        if (*p == '\\')
            fputs("\\e", stdout);
        else
            putchar(*p);
        if (*p == '\n' && (p[1] == '.' || p[1] == '\''))
            fputs("\\&", stdout);
    }
}

/* Prints prose filled and the example, from the first indented line on, unfilled. */
static void print_details(const char *details)
{
    const char *example = strstr(details, "\n\n  ");
    const size_t n = example ? (size_t)(example - details) : strlen(details);
    char *prose = strndup(details, n);
    printf(".PP\n");
    opt_print_troff(prose ? prose : "");
    free(prose);
    if (example) {
        printf("\n.PP\n.nf\n");
        opt_print_troff(example + 2);
        printf(".fi");
    }
    printf("\n");
}

void opt_print_man(const struct command *cmd)
{
    printf(".SS wkvq %s ", cmd->name);
    opt_print_troff(cmd->operands ? cmd->operands : "");
    printf("\n%s.\n", cmd->summary);
    for (const struct opt *const *table = cmd->groups; table && *table; table++) {
        for (const struct opt *o = *table; o->help; o++) {
            if (o->kind == OPT_HEADING)
                continue;
            char *line = help_line(o);
            printf(".TP\n.B ");
            if (o->letter)
                printf("\\-%c, ", o->letter);
            printf("\\-\\-");
            opt_print_troff(o->name);
            if (o->arg)
                printf(o->kind == OPT_MAYBE ? "[=\\fI%s\\fR]" : "=\\fI%s\\fR", o->arg);
            printf("\n");
            opt_print_troff(line ? line : o->help);
            printf(".\n");
            free(line);
        }
    }
    char *details = details_of(cmd);
    if (details && *details)
        print_details(details);
    free(details);
}
