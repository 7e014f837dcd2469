/* SPDX-License-Identifier: MIT */
#include "tools/commands/commands.h"

const struct command *const command_table[] = {
    &cmd_quantize, &cmd_calibrate, &cmd_refine, &cmd_convert, &cmd_verify,   &cmd_export,
    &cmd_eval,     &cmd_sweep,     &cmd_report, &cmd_tune,    &cmd_generate, &cmd_inspect,
    &cmd_tokenize, &cmd_bench,     &cmd_synth,  &cmd_fold,
};
const int command_count = ARRAY_LEN(command_table);
