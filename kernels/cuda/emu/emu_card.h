/* SPDX-License-Identifier: MIT
 *
 * The GPU and driver that the emulation presents: its memory, a call that fails on request,
 * and the way in which its second stream runs (emu_queue.h). */
#ifndef WKVQ_EMU_CARD_H
#define WKVQ_EMU_CARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct emu_card {
    int devices, driver;       /* driver: 13000 for 13.0 */
    int major, minor;          /* compute capability */
    uint64_t total, pinned;    /* bytes of device memory; of page-locked host memory */
    uint64_t live, peak, held; /* device bytes now and at most; page-locked now */
    long calls;                /* runtime calls since a device was opened */
    long fail_at;              /* this call and all later ones fail; 0: none */
    int failed;                /* the sticky error */
    long copies;               /* queued on the second stream so far */
    long waits; /* calls so far in which the host waited for a stream or an event */
    long
        launches; /* started on the first stream so far: kernels, copies, products, graphs */
    long graphs;  /* of which are graphs */
    int last;     /* the error that cudaGetLastError() returns and forgets */
    int capture_error;       /* what has spoilt the capture that is going on */
    const char *graph_fails; /* a function of captures and graphs that fails; NULL: none */
    uint64_t crossed;        /* bytes from the host to the card so far */
    bool early_copies;       /* the second stream runs as early as it may, else late */
    long number;             /* of the card, the same for processes that share it */
    int nccl;                /* version of the library (emu_nccl.h); 0: it is not there */
    int cudnn;               /* version of the library (emu_cudnn.h); 0: it is not there */
    /* A function that it lacks, and one that fails; NULL: none. */
    const char *cudnn_lacks, *cudnn_fails;
    int cudnn_refuses; /* its first configurations for a graph that it cannot plan with */
    int cudnn_status; /* what it, or a cudnnCreate that fails, says then; 0: not supported */
    long cudnn_runs;  /* plans that it has executed */
    int nccl_fails_in; /* its calls until one fails on rank 1; 0: none does */
    int cublaslt;      /* version of the library (emu_cublaslt.h); 0: it is not there */
    /* A function that it lacks, and one that fails, or "capture": products in one; NULL: none. */
    const char *cublaslt_lacks, *cublaslt_fails;
    bool cublaslt_refuses;      /* it has no algorithm */
    bool cublaslt_lacks_memory; /* so says the function that fails */
    bool cublas_lacks_memory;   /* so say functions of cuBLAS */
    bool no_code;               /* the build has no code for it */
    long cublaslt_runs;         /* products that it has computed */
};

#ifdef __cplusplus
extern "C" {
#endif
/* The only card. Tests may change it while no device is open. EMU_DEVICES, EMU_DRIVER,
 * EMU_MEMORY, EMU_FAIL_AT, EMU_EARLY_COPIES, EMU_NUMBER (by default the process's id), EMU_NCCL,
 * EMU_NCCL_FAILS_IN, EMU_MAJOR, EMU_CUDNN and EMU_CUBLASLT in the environment set its start
 * values. */
struct emu_card *emu_card(void);
/* Called before a device is opened: forgets calls, failures and reports. */
void emu_card_opened(void);
/* Returns whether the next runtime call fails. */
bool emu_card_fails_next(void);
/* Counts a runtime call and returns its error. */
int emu_card_call(void);
/* The same of a call that a capture does not allow, and which spoils it. */
int emu_card_call_outside(void);
/* The same of the functions of captures and graphs. */
int emu_card_graph_call(const char *name);
/* cudaMalloc and cudaFree. Freeing memory while work is queued is reported. */
int emu_card_alloc(void **out, size_t bytes);
void emu_card_free(void *p);
int emu_card_pin(void **out, size_t bytes);
void emu_card_unpin(void *p);
#ifdef __cplusplus
}
#endif

#endif
