/* SPDX-License-Identifier: MIT */
#include "tools/commands/help.h"

#include "config.h"
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
    fprintf(f,
            "\n"
            "`wkvq COMMAND --help` explains a command. `wkvq --version` prints the "
            "version.\n"
            "Exit status: 0 done, 1 failed, 2 wrong usage or input, 3 verification "
            "failed,\n"
            "130 interrupted (the message says what is kept), 141 nobody read the output "
            "to its end.\n");
}

void help_print_version(void)
{
    printf("wkvq %s\n", WKVQ_VERSION);
}

void help_print_man(void)
{
    printf(".\\\" Printed by wkvq --man.\n"
           ".TH WKVQ 1 \"\" \"wkvq %s\" \"User Commands\"\n"
           ".SH NAME\nwkvq \\- 4-bit weights and 4-bit KV cache for LLaMA-family models\n"
           ".SH SYNOPSIS\n.B wkvq\n.I COMMAND\n[\\fIOPTION\\fR...] ...\n"
           ".SH DESCRIPTION\n%s.PP\n.nf\n%s.fi\n.SH COMMANDS\n",
           WKVQ_VERSION, purpose, example);
    for (int i = 0; i < command_count; i++)
        opt_print_man(command_table[i]);
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
}

void help_print_completion(void)
{
    printf("# bash completion for wkvq, printed by wkvq --completion\n"
           "_wkvq()\n{\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} words=\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        COMPREPLY=($(compgen -W \"--help --version");
    for (int i = 0; i < command_count; i++)
        printf(" %s", command_table[i]->name);
    printf("\" -- \"$cur\"))\n        return\n    fi\n"
           "    case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < command_count; i++) {
        printf("    %s) words=\"\n", command_table[i]->name);
        opt_print_words(command_table[i]);
        printf("\" ;;\n");
    }
    printf("    esac\n"
           "    case $cur in\n"
           "    -*)\n"
           "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
           "        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n"
           "        ;;\n"
           "    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
           "    esac\n"
           "}\n"
           "complete -o filenames -F _wkvq wkvq\n");
}
