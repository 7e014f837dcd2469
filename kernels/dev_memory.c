/* SPDX-License-Identifier: MIT
 *
 * Memory of a device, and copies between it and the host. */
#include "kernels/dev_begin.h"

enum err dev_alloc(struct dev *d, void **out, size_t bytes)
{
    BEGIN(alloc);
    WANT(bytes > 0, "alloc: zero bytes");
    void *p = d->ops.alloc(d, bytes);
    FAIL_IF(!p, ERR_MEMORY, "device %s: out of memory, %zu bytes", d->ops.name, bytes);
    *out = p;
    END(DEV_COPY);
}

void dev_free(struct dev *d, void *p)
{
    if (p)
        d->ops.free(d, p);
}

enum err dev_upload(struct dev *d, void *dst, const void *host_src, size_t bytes)
{
    BEGIN(upload);
    d->ops.upload(d, dst, host_src, bytes);
    END(DEV_COPY);
}

enum err dev_download(struct dev *d, void *host_dst, const void *src, size_t bytes)
{
    BEGIN(download);
    d->ops.download(d, host_dst, src, bytes);
    END(DEV_COPY);
}

enum err dev_zero(struct dev *d, void *dst, size_t bytes)
{
    BEGIN(zero);
    d->ops.zero(d, dst, bytes);
    END(DEV_COPY);
}

enum err dev_sync(struct dev *d)
{
    BEGIN(sync);
    d->ops.sync(d);
    END(DEV_COPY);
}

bool dev_memory(struct dev *d, uint64_t *free, uint64_t *total)
{
    *free = *total = 0;
    return d->ops.memory && d->ops.memory(d, free, total);
}

enum err dev_copy_in(struct dev *d, void *dst, const void *host_src, size_t bytes)
{
    BEGIN(copy_in);
    d->ops.copy_in(d, dst, host_src, bytes);
    END(DEV_COPY);
}

enum err dev_copy_out(struct dev *d, void *host_dst, const void *src, size_t bytes)
{
    BEGIN(copy_out);
    d->ops.copy_out(d, host_dst, src, bytes);
    END(DEV_COPY);
}

enum err dev_copy_wait(struct dev *d)
{
    BEGIN(copy_wait);
    d->ops.copy_wait(d);
    END(DEV_COPY);
}

enum err dev_copy_sync(struct dev *d)
{
    BEGIN(copy_sync);
    d->ops.copy_sync(d);
    END(DEV_COPY);
}

enum err dev_host_alloc(struct dev *d, void **out, size_t bytes)
{
    BEGIN(host_alloc);
    WANT(bytes > 0, "host_alloc: zero bytes");
    void *p = d->ops.host_alloc(d, bytes);
    FAIL_IF(!p, ERR_MEMORY, "device %s: no page-locked memory, %zu bytes", d->ops.name,
            bytes);
    *out = p;
    END(DEV_COPY);
}

void dev_host_free(struct dev *d, void *p)
{
    if (p)
        d->ops.host_free(d, p);
}
