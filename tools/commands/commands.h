/* SPDX-License-Identifier: MIT
 *
 * The subcommands, one per file: tools/commands/cmd_NAME.c. */
#ifndef WKVQ_COMMANDS_H
#define WKVQ_COMMANDS_H

#include "tools/cli/opt.h"

extern const struct command cmd_quantize;
extern const struct command cmd_calibrate;
extern const struct command cmd_refine;
extern const struct command cmd_convert;
extern const struct command cmd_fold;
extern const struct command cmd_verify;
extern const struct command cmd_export;
extern const struct command cmd_eval;
extern const struct command cmd_sweep;
extern const struct command cmd_report;
extern const struct command cmd_tune;
extern const struct command cmd_generate;
extern const struct command cmd_inspect;
extern const struct command cmd_tokenize;
extern const struct command cmd_bench;
extern const struct command cmd_synth;

/* all commands, in the order of --help */
extern const struct command *const command_table[];
extern const int command_count;

#endif
