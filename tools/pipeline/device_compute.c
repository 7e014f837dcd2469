/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/device_compute.h"

#include "kernels/dev.h"
#include "tools/cli/child.h"
#include "tools/cli/opt.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

struct query {
    enum recipe_device device;
    enum recipe_compute *answer; /* in memory that both processes share */
};

static enum err ask(void *ctx)
{
    const struct query *q = ctx;
    struct dev *d = NULL;
    const struct dev_settings s = {.name = opt_choice_name(CHOICES_DEVICE, (int)q->device),
                                   .threads = 1};
    TRY(dev_open(&d, &s));
    *q->answer = dev_preferred_act(d) == DT_BF16 ? COMPUTE_BF16 : COMPUTE_F32;
    dev_close(&d);
    return OK;
}

enum err device_auto_compute(enum recipe_compute *out, enum recipe_device device)
{
    const int access = PROT_READ | PROT_WRITE, kind = MAP_SHARED | MAP_ANONYMOUS;
    enum recipe_compute *answer = mmap(NULL, sizeof(*answer), access, kind, -1, 0);
    FAIL_IF(answer == MAP_FAILED, ERR_MEMORY, "cannot share memory: %s", strerror(errno));
    struct query q = {device, answer};
    const enum err err = child_run(ask, &q);
    const enum recipe_compute found = *answer;
    munmap(answer, sizeof(*answer));
    if (err && *err_text())
        return err_add(err,
                       "run.device %s: ", opt_choice_name(CHOICES_DEVICE, (int)device));
    FAIL_IF(err, err, "run.device %s cannot be opened: the message is above",
            opt_choice_name(CHOICES_DEVICE, (int)device));
    *out = found;
    return OK;
}
