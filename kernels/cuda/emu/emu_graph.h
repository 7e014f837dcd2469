/* SPDX-License-Identifier: MIT
 *
 * Graphs of cuDNN's operations on tensors with four dimensions, computed on the host. Private to
 * kernels/cuda/emu. */
#ifndef WKVQ_EMU_GRAPH_H
#define WKVQ_EMU_GRAPH_H

#include <stdint.h>
#include <vector>

namespace emu
{

/* A tensor of a graph. type: of enum cudnn_data. */
struct dnn_array {
    int64_t id;
    int type;
    bool is_virtual, is_value;
    int64_t dim[4], stride[4]; /* no dimensions: there is no such tensor */
    void *p;                   /* NULL for virtual ones */
    float constant;
};

enum dnn_op_kind { DNN_OP_POINTWISE, DNN_OP_REDUCTION, DNN_OP_MATMUL, DNN_OP_RESHAPE };

/* mode: of enum cudnn_pointwise or enum cudnn_reduction. A matmul is y = x b. */
struct dnn_op {
    dnn_op_kind kind;
    int mode;
    int64_t axis;
    dnn_array x, b, t, y;
};

/* Whether each operation's tensors fit together, and each virtual one is written before it is
 * read. */
bool dnn_fits(const std::vector<dnn_op> &ops);
/* spoilt: writes NaN instead. */
void dnn_run(const std::vector<dnn_op> &ops, bool spoilt);

} // namespace emu

#endif
