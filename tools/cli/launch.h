/* SPDX-License-Identifier: MIT
 *
 * Processes that mpirun (or srun --mpi) has started together, through MPI. A build without it
 * (-Dmpi=disabled) has the same functions, and refuses to be one of several processes. */
#ifndef WKVQ_LAUNCH_H
#define WKVQ_LAUNCH_H

#include "kernels/base/error.h"
#include "kernels/base/ranks.h"
#include "kernels/dev.h"

#include <stdint.h>

/* *out = the processes that this one belongs to; NULL: it is alone. Valid until mpi_close().
 * Only the main thread may call the functions of *out. ERR_SUPPORT: this build has no MPI, or
 * there are more than RANKS_MAX processes. */
enum err mpi_open(const struct ranks **out);
/* From now on each function of *out first waits for all ranks, so that its cost tells waiting from
 * transfer. */
void mpi_measure(void);
/* Ends the use of MPI; every rank calls it. The process continues by itself. */
void mpi_close(void);
/* Ends all processes with the exit status, if MPI is still in use: after an error that the
 * others do not have, they would wait for ever. */
void mpi_end_all(int status);
/* *ranks = the processes on this machine, *threads = how many each process should compute with:
 * its processors, shared with the processes that may use the same ones, and the least number
 * of any machine, because the threads decide the last bits. Every rank calls it. */
void mpi_share_machine(int64_t *ranks, int64_t *threads);
/* Links the GPUs of all ranks if that is possible, and rank 0 reports which way gradients go
 * (kernels/dev_link.h). r NULL: nothing. Every rank calls it. */
void mpi_link_devices(struct dev *d, const struct ranks *r);

#endif
