/* SPDX-License-Identifier: MIT
 *
 * The program's entry. Finds the subcommand, runs it, prints its error, and sets the exit
 * status. */
#include "data/json.h"
#include "kernels/base/log.h"
#include "tools/cli/cure.h"
#include "tools/cli/launch.h"
#include "tools/cli/lost_page.h"
#include "tools/cli/nearest.h"
#include "tools/cli/stop.h"
#include "tools/commands/commands.h"
#include "tools/commands/help.h"
#include "tools/recipe/recipe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Returns what to do about each kind of failure, for messages that only say what was wrong. */
static const char *remedy(enum err e)
{
    switch (e) {
    case ERR_USAGE:
        return "Correct the command or the configuration.";
    case ERR_FORMAT:
        return "The file is damaged or of another kind. Create or download it again.";
    case ERR_SUPPORT:
        return "wkvq does not support this model, setting or machine.";
    case ERR_NOT_FOUND:
        return "Check the name. If a directory lacks a file, create or download it again.";
    case ERR_MISMATCH:
        return "Use files that belong together, choose another output directory, or delete "
               "the old one to start over.";
    case ERR_IO:
        return "The system refused to read or write. Check free space, limits, permissions "
               "and the disk.";
    case ERR_MEMORY:
        return "Free memory or raise its limit. Fewer --threads, and in a calibration a "
               "lower --memory, calibration.seqlen or crr.blocks, need less.";
    case ERR_DEVICE:
        return "Use --device cpu; a calibration continues from its saved state. If the "
               "device is the CPU already, report this as a bug.";
    case ERR_NUMERIC:
        return "In a calibration, start over with lower optimizer.lr_* or with --set "
               "run.compute=f32, in a new state directory (quantize: --state NEW; "
               "calibrate: -o NEW). If that fails too, check the checkpoint for damage.";
    case ERR_VERIFY:
        return "Do not use the artifact. Report this with the command's output.";
    case ERR_STOPPED:
        return "Run the same command again to continue.";
    default:
        return "This is a bug in wkvq. Report it with the command.";
    }
}

/* Returns the true cause of an error. Jansson reports no lack of memory, so a later step
 * fails for another apparent reason. */
static enum err cause(enum err e)
{
    if (!e || e == ERR_MEMORY || !json_out_of_memory())
        return e;
    return err_add(ERR_MEMORY, "out of memory, and therefore: ");
}

/* Returns whether the message says what to do. That of a device has the words of its operations and
 * its driver, which say what failed. */
static bool has_cure(enum err e, const char *text)
{
    return e != ERR_DEVICE && cure_is_in(text);
}

static int report(enum err e, const char *name, bool verbose)
{
    const char *text = err_text();
    if (!e)
        return 0;
    fprintf(stderr, "wkvq %s: %s\n", name, *text ? text : err_name(e));
    if (verbose)
        fprintf(stderr, "(%s error, found at %s)\n", err_name(e), err_where());
    if (!has_cure(e, text))
        fprintf(stderr, "%s ", remedy(e));
    fprintf(stderr, "`wkvq %s --help` lists the options.\n", name);
    return err_exit_status(e);
}

static const struct command *find_command(const char *name)
{
    for (int i = 0; i < command_count; i++) {
        if (!strcmp(command_table[i]->name, name))
            return command_table[i];
    }
    return NULL;
}

static int unknown_command(const char *name)
{
    struct nearest best = {0};
    const int status = err_exit_status(ERR_USAGE);
    const char *about = help_nearest_about(name);
    for (int i = 0; i < command_count; i++)
        nearest_consider(&best, name, command_table[i]->name);
    if (name[0] == '-')
        fprintf(stderr, "wkvq: unknown option '%s' before the command%s%s%s\n", name,
                about ? "; did you mean '" : "", about ? about : "", about ? "'?" : "");
    else if (best.word)
        fprintf(stderr, "wkvq: unknown command '%s'; did you mean '%s'?\n", name,
                best.word);
    else
        fprintf(stderr, "wkvq: unknown command '%s'\n", name);
    fprintf(stderr, "`wkvq --help` lists the commands.\n");
    return status;
}

/* Returns the value that was typed for an unknown option: after its =, or as the next argument.
 * NULL: none. */
static const char *typed_value(int argc, char **argv, int at)
{
    const char *equals = strchr(argv[at], '=');
    if (equals)
        return equals + 1;
    return at + 1 < argc && argv[at + 1][0] != '-' ? argv[at + 1] : NULL;
}

/* Other tools have options for what is a key here: a key's own name comes before an option that
 * is spelt much like it, and that before a key that is. */
static int unknown_option(const struct command *cmd, int argc, char **argv, int at)
{
    const struct recipe_key *alike[RECIPE_ALIKE_MAX];
    char name[64], keys[512];
    const bool sets = opt_has(cmd, "set");
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(argv[at] + 2, "="), argv[at] + 2);
    const char *nearest = opt_nearest(cmd, name);
    int n = sets ? recipe_alike(alike, name, false) : 0;
    if (sets && !n && !nearest)
        n = recipe_alike(alike, name, true);
    fprintf(stderr, "wkvq %s: unrecognized option '--%s'", cmd->name, name);
    if (n) {
        recipe_set_text(keys, sizeof(keys), alike, n, typed_value(argc, argv, at));
        fprintf(stderr, "; it may mean a key of the configuration: use %s", keys);
    } else if (nearest) {
        fprintf(stderr, "; did you mean '--%s'?", nearest);
    }
    fprintf(stderr, "\n`wkvq %s --help` lists the options.\n", cmd->name);
    return err_exit_status(ERR_USAGE);
}

/* Flushes the output. A full disk may have swallowed results, which is said. Nobody reads a closed
 * pipe, as after `| head`, and nothing is said. */
static int finish_output(int status)
{
    if (status || (fflush(stdout) == 0 && !ferror(stdout)))
        return status;
    if (stop_output_closed())
        return STOP_STATUS_PIPE;
    fprintf(stderr,
            "wkvq: cannot write to standard output: %s\nThe printed result is incomplete. "
            "Files that the command wrote are complete.\n",
            strerror(errno));
    return err_exit_status(ERR_IO);
}

/* Ends the other ranks after an error, which they would wait for. */
static int leave(int status)
{
    if (status) {
        fflush(NULL);
        mpi_end_all(status);
    }
    mpi_close();
    return status;
}

static char help_option[] = "--help";

/* argp ends the process by itself after --help. */
static bool parsing;

static void finish_help(void)
{
    const int status = parsing ? finish_output(0) : 0;
    if (status)
        _exit(status);
}

static int run_command(const struct command *cmd, int argc, char **argv)
{
    struct args a;
    char name[64];
    snprintf(name, sizeof(name), "wkvq %s", cmd->name);
    argv[0] = name;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h")) /* argp accepts -? only */
            argv[i] = help_option;
    }
    const int unknown = opt_find_unknown(cmd, argc, argv);
    if (unknown)
        return unknown_option(cmd, argc, argv, unknown);
    parsing = !atexit(finish_help);
    opt_parse(&a, cmd, argc, argv);
    parsing = false;
    stop_watch(STOP_AT_ONCE);
    lost_page_watch();
    if (a.quiet)
        log_set_level(LOG_WARN);
    else if (a.verbose)
        log_set_level(LOG_VERBOSE);
    err_clear();
    enum err err = a.json ? opt_need_utf8(&a, "--json") : OK;
    if (!err)
        err = opt_find_models(&a);
    if (!err)
        err = cmd->run(&a);
    opt_free_models(&a);
    return report(cause(err), cmd->name, a.verbose);
}

int main(int argc, char **argv)
{
    stop_ignore_broken_output();
    if (argc < 2) {
        help_print(stderr);
        return err_exit_status(ERR_USAGE);
    }
    if (argc > 2 && !strcmp(argv[1], "help")) {
        argv[1] = argv[2];
        argv[2] = help_option;
    }
    const struct command *cmd = find_command(argv[1]);
    if (cmd)
        return leave(finish_output(run_command(cmd, argc - 1, argv + 1)));
    if (help_print_about(!strcmp(argv[1], "help") ? help_option : argv[1]))
        return finish_output(0);
    return unknown_command(argv[1]);
}
