/* SPDX-License-Identifier: MIT */
#include "tools/cli/launch.h"

#include "config.h"
#include "kernels/base/log.h"
#include "kernels/dev_link.h"

#include <stdbool.h>
#include <stdlib.h>

/* Returns whether a launcher of MPI has set its variables: Open MPI's mpirun, MPICH's mpiexec,
 * or srun with PMIx. A process that was started by itself does not pay for MPI. */
static bool is_launched(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("PMIX_RANK");
}

void mpi_link_devices(struct dev *d, const struct ranks *r)
{
    char about[DEV_LINK_TEXT];
    const bool linked = r && dev_link(d, r, about);
    if (r && *about && !r->rank)
        log_info(linked ? "gradients go from GPU to GPU by %s"
                        : "gradients pass through host memory: %s",
                 about);
}

#if !HAVE_MPI

enum err mpi_open(const struct ranks **out)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    size = size ? size : getenv("PMI_SIZE");
    *out = NULL;
    FAIL_IF(is_launched() && size && atoi(size) > 1, ERR_SUPPORT,
            "this build has no MPI, but mpirun has started %s processes; configure with "
            "-Dmpi=enabled, or start one",
            size);
    return OK;
}

void mpi_measure(void)
{
}

void mpi_close(void)
{
}

void mpi_end_all(int status)
{
}

void mpi_share_machine(int64_t *ranks, int64_t *threads)
{
    *ranks = 1;
    *threads = 0;
}

#else

#include "kernels/base/clock.h"
#include "kernels/base/limits.h"

#include <mpi.h>
#include <sched.h>
#include <string.h>

#define PIECE ((size_t)1 << 30) /* MPI counts in int */

static struct ranks world;
static struct ranks_cost spent;
static bool open_now, measuring;

/* Returns when a transfer begins. */
static double begin_transfer(void)
{
    const double begin = clock_s();
    if (!measuring)
        return begin;
    MPI_Barrier(MPI_COMM_WORLD);
    const double now = clock_s();
    spent.wait_s += now - begin;
    return now;
}

static void end_transfer(double begin, size_t sent)
{
    spent.transfer_s += clock_s() - begin;
    spent.sent_bytes += (double)sent;
}

static void cost(struct ranks_cost *out)
{
    *out = spent;
}

void mpi_measure(void)
{
    measuring = true;
}

static size_t others(void)
{
    return (size_t)world.size - 1;
}

static void broadcast(void *data, size_t bytes, int root)
{
    const double begin = begin_transfer();
    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        MPI_Bcast((char *)data + at, (int)n, MPI_BYTE, root, MPI_COMM_WORLD);
    }
    end_transfer(begin, world.rank == root ? others() * bytes : 0);
}

static void gather(void *all, const void *mine, size_t bytes)
{
    const double begin = begin_transfer();
    MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD);
    end_transfer(begin, others() * bytes);
}

/* at[q] = where the part of rank q begins if parts of n[q] follow each other. */
static void places(int *at, const int *n)
{
    at[0] = 0;
    for (int q = 1; q < world.size; q++)
        at[q] = at[q - 1] + n[q - 1];
}

static void exchange(float *to, const int *to_n, const float *from, const int *from_n)
{
    const double begin = begin_transfer();
    int to_at[RANKS_MAX], from_at[RANKS_MAX], sent = 0;
    places(to_at, to_n);
    places(from_at, from_n);
    MPI_Alltoallv(from, from_n, from_at, MPI_FLOAT, to, to_n, to_at, MPI_FLOAT,
                  MPI_COMM_WORLD);
    for (int q = 0; q < world.size; q++)
        sent += q == world.rank ? 0 : from_n[q];
    end_transfer(begin, (size_t)sent * sizeof(*from));
}

static void join(float *all, const int *n, const float *mine)
{
    const double begin = begin_transfer();
    int at[RANKS_MAX];
    places(at, n);
    MPI_Allgatherv(mine, n[world.rank], MPI_FLOAT, all, n, at, MPI_FLOAT, MPI_COMM_WORLD);
    end_transfer(begin, others() * (size_t)n[world.rank] * sizeof(*mine));
}

enum err mpi_open(const struct ranks **out)
{
    int level;
    *out = NULL;
    if (!is_launched())
        return OK;
    /* Other threads compute, and only the main one communicates. */
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    open_now = true;
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.size);
    FAIL_IF(world.size > RANKS_MAX, ERR_SUPPORT, "%d processes, at most %d are supported",
            world.size, RANKS_MAX);
    world.broadcast = broadcast;
    world.gather = gather;
    world.exchange = exchange;
    world.join = join;
    world.cost = cost;
    if (world.size > 1)
        *out = &world;
    else
        mpi_close();
    return OK;
}

void mpi_close(void)
{
    if (open_now)
        MPI_Finalize();
    open_now = false;
}

void mpi_end_all(int status)
{
    if (open_now)
        MPI_Abort(MPI_COMM_WORLD, status);
}

void mpi_share_machine(int64_t *ranks, int64_t *threads)
{
    MPI_Comm here;
    cpu_set_t mine, all[RANKS_MAX];
    int n, same = 0;
    CPU_ZERO(&mine);
    sched_getaffinity(0, sizeof(mine), &mine);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
    MPI_Comm_size(here, &n);
    MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, all, sizeof(mine), MPI_BYTE, here);
    MPI_Comm_free(&here);
    for (int i = 0; i < n; i++)
        same += CPU_EQUAL(&mine, &all[i]);
    int64_t least = cpus_available() / same > 1 ? cpus_available() / same : 1;
    MPI_Allreduce(MPI_IN_PLACE, &least, 1, MPI_INT64_T, MPI_MIN, MPI_COMM_WORLD);
    *ranks = n;
    *threads = least;
}

#endif
