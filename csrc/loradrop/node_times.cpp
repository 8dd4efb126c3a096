#include "loradrop/node_times.h"

#include "ggml.h"

#include <chrono>

namespace loradrop {

static int64_t now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

static bool computes(const ggml_tensor & node) {
    return node.op != GGML_OP_NONE && node.op != GGML_OP_VIEW && node.op != GGML_OP_RESHAPE &&
           node.op != GGML_OP_PERMUTE && node.op != GGML_OP_TRANSPOSE;
}

// Null when the node reads none.
static const ggml_tensor * weights_of(const ggml_tensor & node) {
    for (const ggml_tensor * source : node.src) {
        if (source && source->op == GGML_OP_NONE && !source->view_src && !(source->flags & GGML_TENSOR_FLAG_INPUT)) {
            return source;
        }
    }
    return nullptr;
}

bool node_times::on_node(ggml_tensor * node, bool ask, void * times) {
    auto * self = static_cast<node_times *>(times);
    if (ask) {
        self->started = now();
        return computes(*node);
    }
    const int64_t       taken   = now() - self->started;
    const ggml_tensor * weights = weights_of(*node);
    self->nodes.push_back({ggml_op_desc(node), weights ? weights->name : node->name,
                           weights ? ggml_type_name(weights->type) : "", weights ? ggml_nbytes(weights) : 0, taken});
    return true;
}

}  // namespace loradrop
