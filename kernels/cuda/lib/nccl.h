/* SPDX-License-Identifier: MIT
 *
 * The part of NCCL that this device calls. The library is opened by name, and its header is not
 * needed to build; these declarations are those of its binary interface since version 2.7. */
#ifndef WKVQ_NCCL_H
#define WKVQ_NCCL_H

#include <stddef.h>

namespace CUDA_NS
{

/* Names a group of ranks; made by one of them, passed by value. */
struct nccl_id {
    char bytes[128];
};
typedef struct ncclComm *nccl_comm; /* this process's place in the group */

constexpr int NCCL_SUCCESS = 0; /* of ncclResult_t */
constexpr int NCCL_FLOAT = 7;   /* of ncclDataType_t: F32 */

/* Counts are of elements. Between start and end of a group, sends and receives of all peers belong
 * together and may be queued in any order. */
struct nccl {
    int (*version)(int *out);
    int (*make_id)(nccl_id *out);
    int (*join)(nccl_comm *out, int ranks, nccl_id id, int rank);
    int (*leave)(nccl_comm c);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *p, size_t n, int type, int peer, nccl_comm c, cudaStream_t s);
    int (*receive)(void *p, size_t n, int type, int peer, nccl_comm c, cudaStream_t s);
    const char *(*text)(int result);
};

} // namespace CUDA_NS

#endif
