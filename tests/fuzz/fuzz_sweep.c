/* SPDX-License-Identifier: MIT
 *
 * A sweep's plan. */
#include "tests/fuzz/fuzz.h"
#include "tools/sweep/sweep_plan.h"

#include <string.h>

void fuzz_setup(void)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct sweep_plan p = {0};
    fuzz_put("x.yaml", data, n);
    const enum err e = sweep_plan_load(&p, fuzz_path("x.yaml"));
    fuzz_check(e);
    for (int i = 0; !e && i < p.n_cells; i++)
        fuzz_use(p.cell[i].name, strlen(p.cell[i].name));
    sweep_plan_free(&p);
    return 0;
}
