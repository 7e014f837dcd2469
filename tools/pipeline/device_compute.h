/* SPDX-License-Identifier: MIT
 *
 * Resolves run.compute: auto for a device of this machine. */
#ifndef WKVQ_DEVICE_COMPUTE_H
#define WKVQ_DEVICE_COMPUTE_H

#include "kernels/base/error.h"
#include "tools/cli/choices.h"

/* Writes COMPUTE_F32 or COMPUTE_BF16. The device is opened in a child process, so that the
 * caller, which forks later, has no threads and no open device. Errors: those of opening
 * the device; its message is in the log. */
enum err device_auto_compute(enum recipe_compute *out, enum recipe_device device);

#endif
