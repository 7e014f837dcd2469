/* SPDX-License-Identifier: MIT */
#include "tools/commands/help.h"

#include "config.h"
#include "kernels/base/mem.h"
#include "tools/cli/nearest.h"
#include "tools/commands/commands.h"
#include "tools/recipe/recipe.h"

#include <string.h>

static const char purpose[] =
    "wkvq turns a LLaMA-family checkpoint into a W4KV4 checkpoint: 4-bit weights and a "
    "4-bit\n"
    "key/value cache, calibrated on text (WKVQuant), packed, and verified.\n";

static const char example[] =
    "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o SmolLM2-135M-w4kv4\n"
    "  wkvq eval SmolLM2-135M-w4kv4 --data wiki.test.raw --windows 12\n";

static void print_help(void)
{
    help_print(stdout);
}

static void print_version(void)
{
    printf("wkvq %s\n", WKVQ_VERSION);
}

static void print_reference(void)
{
    recipe_print_reference(stdout);
}

static void print_man(void);
static void print_completion(void);

static const struct about {
    const char *name, *short_name, *summary;
    void (*print)(void);
} about[] = {
    {"--help", "-h", "print this text", print_help},
    {"--version", "-V", "print the version", print_version},
    {"--print-reference", "", "print every key of the configuration, with its default",
     print_reference},
    {"--man", "", "print the man page's source", print_man},
    {"--completion", "", "print the completion for bash", print_completion},
};

bool help_print_about(const char *word)
{
    for (size_t i = 0; i < ARRAY_LEN(about); i++) {
        if (strcmp(about[i].name, word) && strcmp(about[i].short_name, word))
            continue;
        about[i].print();
        return true;
    }
    return false;
}

const char *help_nearest_about(const char *word)
{
    struct nearest best = {0};
    for (size_t i = 0; i < ARRAY_LEN(about); i++)
        nearest_consider(&best, word, about[i].name);
    return best.word;
}

void help_print(FILE *f)
{
    fprintf(f,
            "Usage: wkvq COMMAND [OPTION...] ...\n"
            "%s\n"
            "The main job and a check of its result:\n"
            "%s\n"
            "Commands:\n",
            purpose, example);
    for (int i = 0; i < command_count; i++)
        fprintf(f, "  %-10s %s\n", command_table[i]->name, command_table[i]->summary);
    fprintf(f, "\n`wkvq COMMAND --help` explains a command. Without one:\n");
    for (size_t i = 0; i < ARRAY_LEN(about); i++)
        fprintf(f, "  %-18s %s\n", about[i].name, about[i].summary);
    fprintf(f,
            "\n"
            "Exit status: 0 done, 1 failed, 2 wrong usage or input, 3 verification "
            "failed,\n"
            "130 interrupted (the message says what is kept), 141 nobody read the output "
            "to its end.\n");
}

static const struct {
    const char *name, *use;
} environment[] = {
    {"HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE",
     "the cache of the Hugging Face hub, where a model named org/name is looked for"},
    {"HF_HOME", "its parent, $HF_HOME/hub, if neither is set"},
    {"XDG_CACHE_HOME", "the next choice: $XDG_CACHE_HOME/huggingface/hub; the last is "
                       "~/.cache/huggingface/hub"},
    {"CUDA_VISIBLE_DEVICES", "the GPUs over which a sweep spreads its cells"},
    {"WKVQ_CUBLAS, WKVQ_CUBLASLT, WKVQ_CUDNN, WKVQ_NCCL",
     "the file of a library of CUDA, in place of the usual names and folders; all but WKVQ_CUBLAS "
     "may be none, which does without it"},
    {"CUDA_PATH, CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX",
     "folders below which these libraries are looked for"},
    {"WKVQ_GRAPHS",
     "none: start the operations of a training step one by one, not as a CUDA "
     "graph"},
    {"WKVQ_STATE_WAIT",
     "seconds that the ranks of a run wait for each other to see a new directory"},
    {"OPENBLAS_CORETYPE",
     "the processor that OpenBLAS computes for, in place of the one that "
     "was found"},
};

static void print_entry(const char *name, const char *text)
{
    printf(".TP\n.B ");
    opt_print_troff(name);
    printf("\n");
    opt_print_troff(text);
    printf("\n");
}

static void print_man(void)
{
    printf(".\\\" Printed by wkvq --man.\n"
           ".TH WKVQ 1 \"\" \"wkvq %s\" \"User Commands\"\n"
           ".SH NAME\nwkvq \\- 4-bit weights and 4-bit KV cache for LLaMA-family models\n"
           ".SH SYNOPSIS\n.B wkvq\n.I COMMAND\n[\\fIOPTION\\fR...] ...\n"
           ".SH DESCRIPTION\n%s.PP\n.nf\n%s.fi\n.SH COMMANDS\n",
           WKVQ_VERSION, purpose, example);
    for (int i = 0; i < command_count; i++)
        opt_print_man(command_table[i]);
    printf(".SH OPTIONS WITHOUT A COMMAND\n");
    for (size_t i = 0; i < ARRAY_LEN(about); i++)
        print_entry(about[i].name, about[i].summary);
    printf(".SH CONFIGURATION\n"
           "Keys of YAML files (\\fB\\-\\-config\\fR) and of \\fB\\-\\-set\\fR.\n");
    recipe_print_man();
    printf(
        ".SH EXIT STATUS\n"
        ".TP\n.B 0\ndone\n.TP\n.B 1\nfailed: machine, system or numbers\n"
        ".TP\n.B 2\nwrong usage or input\n.TP\n.B 3\nverification failed\n"
        ".TP\n.B 130\ninterrupted; the message says what is kept, and the same command "
        "continues\n"
        ".TP\n.B 141\nstandard output was a pipe that nobody read to its end, as before head; "
        "the work is done\n");
    printf(".SH FILES\n");
    print_entry(
        "PREFIX/share/wkvq/configs",
        "recipes for --config and files for `wkvq sweep`; PREFIX/bin has the program");
    printf(".SH ENVIRONMENT\n");
    for (size_t i = 0; i < ARRAY_LEN(environment); i++)
        print_entry(environment[i].name, environment[i].use);
}

/* The completion's functions. A word that is no option, and has no known values, gets no answer:
 * then -o default completes file names, of which readline knows how to quote them. An = is a word
 * of its own in COMP_WORDS. */
static const char completion_end[] =
    "    esac\n"
    "}\n"
    "_wkvq()\n{\n"
    "    local words= key= cur=${COMP_WORDS[COMP_CWORD]} at=$((COMP_CWORD - 1)) IFS=$' \\t\\n'\n"
    "    COMPREPLY=()\n"
    "    if [[ $cur == '=' ]]; then\n"
    "        cur=\n"
    "    elif [[ ${COMP_WORDS[at]} == '=' ]]; then\n"
    "        at=$((at - 1))\n"
    "    fi\n"
    "    local prev=${COMP_WORDS[at]}\n"
    "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
    "        words=\"$_wkvq_about $_wkvq_commands\"\n"
    "    elif [[ ${COMP_WORDS[at + 1]} == '=' && ${COMP_WORDS[at - 1]} =~ ^(-s|--set|=)$ ]]; then\n"
    "        key=$prev\n"
    "    elif [ \"$COMP_CWORD\" -eq 2 ] && [ \"$prev\" = help ]; then\n"
    "        words=$_wkvq_commands\n"
    "    fi\n"
    "    if [ -n \"$key\" ]; then\n"
    "        _wkvq_values \"$key\"\n"
    "    elif [ -z \"$words\" ]; then\n"
    "        _wkvq_words \"${COMP_WORDS[1]}\" \"$prev\" \"$cur\"\n"
    "    fi\n"
    "    [ -n \"$words\" ] && mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
    "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null\n"
    "    return 0\n"
    "}\n"
    "complete -o default -F _wkvq wkvq\n";

static void print_words_of(const struct command *cmd)
{
    const bool sets = opt_has(cmd, "set");
    printf("    %s)\n        case $2 in\n", cmd->name);
    opt_print_value_words(cmd);
    if (sets)
        printf("        -s|--set) words=$_wkvq_keys ;;\n");
    printf("        *) [[ $3 == -* ]] && words=\"\n");
    opt_print_words(cmd);
    printf("\" ;;\n        esac ;;\n");
}

static void print_completion(void)
{
    printf("# bash completion for wkvq, printed by wkvq --completion\n"
           "_wkvq_about=\"");
    for (size_t i = 0; i < ARRAY_LEN(about); i++)
        printf("%s\n", about[i].name);
    printf("\"\n_wkvq_commands=\"");
    for (int i = 0; i < command_count; i++)
        printf("%s\n", command_table[i]->name);
    printf("\"\n_wkvq_keys=\"");
    recipe_print_key_words();
    printf("\"\n"
           "# $1: a key; sets words to its values\n"
           "_wkvq_values()\n{\n    case $1 in\n");
    recipe_print_value_words();
    printf(
        "    esac\n}\n"
        "# $1: the command, $2: the word before, $3: the word; sets words to what may stand here\n"
        "_wkvq_words()\n{\n    case $1 in\n");
    for (int i = 0; i < command_count; i++)
        print_words_of(command_table[i]);
    fputs(completion_end, stdout);
}
