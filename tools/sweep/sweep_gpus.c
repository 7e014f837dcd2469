/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_gpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The driver's devices are /dev/nvidia0, /dev/nvidia1, ... CUDA numbers those that a process may
 * use from 0, so their count is enough. */
static int count_devices(void)
{
    char path[32];
    int n = 0;
    for (int i = 0; i < 256; i++) {
        snprintf(path, sizeof(path), "/dev/nvidia%d", i);
        n += !access(path, F_OK);
    }
    return n;
}

static int count_entries(const char *list)
{
    int n = *list != '\0';
    for (const char *p = list; *p; p++)
        n += *p == ',';
    return n;
}

static int count_gpus(const char *list)
{
    return list ? count_entries(list) : count_devices();
}

int64_t sweep_gpu_cells(int64_t parallel)
{
    const int n = count_gpus(getenv("CUDA_VISIBLE_DEVICES"));
    return n > 1 ? (parallel + n - 1) / n : parallel;
}

void sweep_gpu(char out[SWEEP_GPU_MAX], int slot)
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    const int n = count_gpus(list);
    *out = '\0';
    if (n < 2)
        return;
    if (!list) {
        snprintf(out, SWEEP_GPU_MAX, "%d", slot % n);
        return;
    }
    for (int i = slot % n; i > 0; i--)
        list = strchr(list, ',') + 1;
    const size_t length = strcspn(list, ",");
    if (length < SWEEP_GPU_MAX)
        snprintf(out, SWEEP_GPU_MAX, "%.*s", (int)length, list);
}
