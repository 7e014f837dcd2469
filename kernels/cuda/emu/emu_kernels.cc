/* SPDX-License-Identifier: MIT
 *
 * All kernels of the cuda device as host C++. */
#include "kernels/cuda/cuda_attn.cu"
#include "kernels/cuda/cuda_attn_bwd.cu"
#include "kernels/cuda/cuda_channel.cu"
#include "kernels/cuda/cuda_copies.cu"
#include "kernels/cuda/cuda_dev.cu"
#include "kernels/cuda/cuda_elem.cu"
#include "kernels/cuda/cuda_find.cu"
#include "kernels/cuda/cuda_kv.cu"
#include "kernels/cuda/cuda_norm.cu"
#include "kernels/cuda/cuda_train.cu"
