/* SPDX-License-Identifier: MIT */
#include "tools/commands.h"

const struct command *const command_table[] = {
    &cmd_calibrate,
    &cmd_convert,
    &cmd_eval,
    &cmd_generate,
    &cmd_inspect,
    &cmd_bench,
    &cmd_tokenize,
    &cmd_verify,
};
const int command_count = ARRAY_LEN(command_table);
