/* SPDX-License-Identifier: MIT
 *
 * Which messages say what to do. The wordings are those of real messages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernels/base/error.h"
#include "tools/cli/cure.h"

static void messages_with_a_cure(void **state)
{
    static const char *const text[] = {
        "no text: calibration needs one; give --data FILE or calibration.data",
        "no directory for the artifact: give -o OUT",
        "s: its weights were quantized by another tool; add --weights-from DIR",
        "r.yaml: unknown key 'bit'; did you mean 'bits'?",
        "out: exists; or name another one",
        "out/m: cannot write: No space left on device; the disk has 1 MB free: free some space",
    };
    for (size_t i = 0; i < ARRAY_LEN(text); i++)
        if (!cure_is_in(text[i]))
            fail_msg("no cure is found in: %s", text[i]);
}

static void messages_without_one(void **state)
{
    static const char *const text[] = {
        "",
        ";",
        "m/config.json: hidden_size is \"8\", want an integer",
        "setting; used: givens; names",
        "m.gguf:give:use; ",
        "tensor a.weight: dtype is F64; supported are F32, F16 and BF16",
    };
    for (size_t i = 0; i < ARRAY_LEN(text); i++)
        if (cure_is_in(text[i]))
            fail_msg("a cure is found in: %s", text[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_with_a_cure),
        cmocka_unit_test(messages_without_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
