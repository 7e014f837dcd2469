/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_nccl.h"

#include "kernels/cuda/lib/nccl.h"

#include <vector>

namespace
{

using CUDA_NS::nccl_comm;
using CUDA_NS::nccl_id;

enum {
    SUCCESS = CUDA_NS::NCCL_SUCCESS,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5
};

struct piece {
    float *p;
    int n;
    int peer;
};

const struct ranks *world;          /* that move what is sent */
std::vector<piece> sends, receives; /* of the group that is open */
bool group_open, group_failed;
cudaStream_t stream;

/* Counts calls of rank 1, and returns whether this one is to fail. */
bool fails()
{
    int *left = &emu_card()->nccl_fails_in;
    return world->rank == 1 && *left && !--*left;
}

int version(int *out)
{
    *out = emu_card()->nccl;
    return SUCCESS;
}

int make_id(nccl_id *out)
{
    memset(out, 'w', sizeof(*out));
    return SUCCESS;
}

int join(nccl_comm *out, int n, nccl_id id, int rank)
{
    for (char c : id.bytes)
        if (c != 'w')
            return INVALID_ARGUMENT;
    *out = (nccl_comm)&world;
    if (n != world->size || rank != world->rank)
        return INVALID_ARGUMENT;
    return fails() ? SYSTEM_ERROR : SUCCESS;
}

int leave(nccl_comm c)
{
    return c == (nccl_comm)&world ? SUCCESS : INVALID_ARGUMENT;
}

int group_start()
{
    if (group_open)
        return INVALID_USAGE;
    group_open = true;
    group_failed = false;
    return SUCCESS;
}

int add(std::vector<piece> *list, const void *p, size_t n, int type, int peer, nccl_comm c,
        cudaStream_t s)
{
    if (!group_open || c != (nccl_comm)&world)
        return INVALID_USAGE;
    if (!p || type != CUDA_NS::NCCL_FLOAT || peer < 0 || peer >= world->size)
        return INVALID_ARGUMENT;
    stream = s;
    list->push_back({(float *)const_cast<void *>(p), (int)n, peer});
    group_failed = fails();
    return group_failed ? SYSTEM_ERROR : SUCCESS;
}

int send(const void *p, size_t n, int type, int peer, nccl_comm c, cudaStream_t s)
{
    return add(&sends, p, n, type, peer, c, s);
}

int receive(void *p, size_t n, int type, int peer, nccl_comm c, cudaStream_t s)
{
    return add(&receives, p, n, type, peer, c, s);
}

/* n[q] = floats of rank q's pieces. Returns them all. */
size_t count(int n[RANKS_MAX], const std::vector<piece> &list)
{
    size_t all = 0;
    for (int q = 0; q < world->size; q++)
        n[q] = 0;
    for (const piece &x : list) {
        n[x.peer] += x.n;
        all += (size_t)x.n;
    }
    return all;
}

/* Calls f(piece, its place in a buffer where the ranks' pieces follow each other). */
template <class F> void place(const std::vector<piece> &list, F f)
{
    size_t at = 0;
    for (int q = 0; q < world->size; q++)
        for (const piece &x : list)
            if (x.peer == q) {
                f(x, at);
                at += (size_t)x.n;
            }
}

void move()
{
    int from_n[RANKS_MAX], to_n[RANKS_MAX];
    std::vector<float> from(count(from_n, sends) + 1), to(count(to_n, receives) + 1);
    place(sends, [&](const piece &x, size_t at) {
        memcpy(from.data() + at, x.p, (size_t)x.n * sizeof(float));
    });
    world->exchange(to.data(), to_n, from.data(), from_n);
    place(receives, [&](const piece &x, size_t at) {
        memcpy(x.p, to.data() + at, (size_t)x.n * sizeof(float));
    });
    sends.clear();
    receives.clear();
}

/* The stream is run at once, as the library may do: run late, a transfer could meet another
 * function of struct ranks on the other side. */
int group_end()
{
    if (!group_open)
        return INVALID_USAGE;
    group_open = false;
    if (group_failed)
        return SYSTEM_ERROR;
    emu::queue(stream, move);
    emu::run_queue(stream, emu::queued(stream));
    return SUCCESS;
}

const char *text(int result)
{
    switch (result) {
    case SUCCESS:
        return "no error";
    case SYSTEM_ERROR:
        return "unhandled system error";
    case INVALID_ARGUMENT:
        return "invalid argument";
    default:
        return "invalid usage";
    }
}

} // namespace

bool emu_nccl_open(const struct ranks *r)
{
    world = r;
    return emu_card()->nccl;
}

void *emu_nccl_symbol(const char *name)
{
    static const struct {
        const char *name;
        void *f;
    } symbols[] = {{"ncclGetVersion", (void *)version},
                   {"ncclGetUniqueId", (void *)make_id},
                   {"ncclCommInitRank", (void *)join},
                   {"ncclCommDestroy", (void *)leave},
                   {"ncclGroupStart", (void *)group_start},
                   {"ncclGroupEnd", (void *)group_end},
                   {"ncclSend", (void *)send},
                   {"ncclRecv", (void *)receive},
                   {"ncclGetErrorString", (void *)text}};
    for (const auto &s : symbols)
        if (!strcmp(s.name, name))
            return s.f;
    return NULL;
}
