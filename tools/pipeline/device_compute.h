/* SPDX-License-Identifier: MIT
 *
 * What run.compute: auto comes to on a device of this machine. */
#ifndef WKVQ_DEVICE_COMPUTE_H
#define WKVQ_DEVICE_COMPUTE_H

#include "kernels/base/error.h"
#include "tools/cli/choices.h"

/* COMPUTE_F32 or COMPUTE_BF16. The device is opened in a process of its own, so that the
 * caller, which is about to fork, stays without threads and without a device. Errors: those
 * of opening it; the log has the message. */
enum err device_auto_compute(enum recipe_compute *out, enum recipe_device device);

#endif
