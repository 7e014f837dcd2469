/* SPDX-License-Identifier: MIT
 *
 * Memory of a device, copies between it and the host, and the wait for its work. */
#include "kernels/attn_memory.h"
#include "kernels/dev_begin.h"

enum err dev_alloc(struct dev *d, void **out, size_t bytes)
{
    OP_BEGIN(alloc, started);
    WANT(bytes > 0, "alloc: zero bytes");
    void *p = d->ops.alloc(d, bytes);
    if (!p && d->failed)
        return d->failed;
    FAIL_IF(!p, ERR_MEMORY, "device %s: out of memory, %zu bytes", d->ops.name, bytes);
    *out = p;
    OP_END(DEV_COPY, started);
}

void dev_free(struct dev *d, void *p)
{
    if (p)
        d->ops.free(d, p);
}

enum err dev_upload(struct dev *d, void *dst, const void *host_src, size_t bytes)
{
    OP_BEGIN(upload, started);
    d->ops.upload(d, dst, host_src, bytes);
    OP_END(DEV_COPY, started);
}

enum err dev_download(struct dev *d, void *host_dst, const void *src, size_t bytes)
{
    OP_BEGIN(download, started);
    d->ops.download(d, host_dst, src, bytes);
    OP_END(DEV_COPY, started);
}

enum err dev_zero(struct dev *d, void *dst, size_t bytes)
{
    OP_BEGIN(zero, started);
    d->ops.zero(d, dst, bytes);
    OP_END(DEV_COPY, started);
}

enum err dev_sync(struct dev *d)
{
    OP_BEGIN(sync, started);
    d->ops.sync(d);
    OP_END(DEV_COPY, started);
}

bool dev_queues(const struct dev *d)
{
    return d->queues && !d->synchronous;
}

bool dev_set_synchronous(struct dev *d, bool on)
{
    d->synchronous = d->queues && on;
    return d->queues;
}

bool dev_memory(struct dev *d, uint64_t *free, uint64_t *total)
{
    *free = *total = 0;
    return d->ops.memory && d->ops.memory(d, free, total);
}

int dev_host_threads(struct dev *d)
{
    uint64_t free, total;
    return dev_memory(d, &free, &total) ? 0 : dev_threads(d);
}

enum err dev_copy_in(struct dev *d, void *dst, const void *host_src, size_t bytes)
{
    OP_BEGIN(copy_in, started);
    d->ops.copy_in(d, dst, host_src, bytes);
    OP_END(DEV_COPY, started);
}

enum err dev_copy_out(struct dev *d, void *host_dst, const void *src, size_t bytes)
{
    OP_BEGIN(copy_out, started);
    d->ops.copy_out(d, host_dst, src, bytes);
    OP_END(DEV_COPY, started);
}

enum err dev_copy_wait(struct dev *d)
{
    OP_BEGIN(copy_wait, started);
    d->ops.copy_wait(d);
    OP_END(DEV_COPY, started);
}

enum err dev_copy_sync(struct dev *d)
{
    OP_BEGIN(copy_sync, started);
    d->ops.copy_sync(d);
    OP_END(DEV_COPY, started);
}

enum err dev_host_alloc(struct dev *d, void **out, size_t bytes)
{
    OP_BEGIN(host_alloc, started);
    WANT(bytes > 0, "host_alloc: zero bytes");
    void *p = d->ops.host_alloc(d, bytes);
    if (!p && d->failed)
        return d->failed;
    FAIL_IF(!p, ERR_MEMORY, "device %s: no page-locked memory, %zu bytes", d->ops.name,
            bytes);
    *out = p;
    OP_END(DEV_COPY, started);
}

void dev_host_free(struct dev *d, void *p)
{
    if (p)
        d->ops.host_free(d, p);
}

static int64_t attn_gpu_bytes(const struct attn_shape *s)
{
    const int64_t T = s->T, H = s->H, K = s->K, d = s->d;
    const int64_t sums = T * H * d * (int64_t)sizeof(float);
    if (s->act != DT_BF16 || T < CUDNN_LEAST_TOKENS)
        return sums;
    const int64_t workspace =
        cudnn_takes(T, H, K, d) ? cudnn_workspace(T, H, K, d) : CUDNN_FORWARD_WORKSPACE;
    const int64_t parts = parts_bytes(T, H, K, d) + workspace;
    return parts > sums ? parts : sums;
}

int64_t attn_inside_bytes(const struct attn_shape *s, int cpu_threads)
{
    return cpu_threads ? cpu_attn_bytes(s, cpu_threads) : attn_gpu_bytes(s);
}
