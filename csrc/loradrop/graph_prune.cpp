#include "loradrop/graph_prune.h"

#include "loradrop/errors.h"

#include "ggml.h"

#include <cstdio>
#include <vector>

namespace loradrop {

static bool is_view_op(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

// While a graph is being built only persistent memory has a buffer.
static bool writes_persistent_memory(const ggml_tensor * node) {
    return node->view_src && node->view_src->buffer && !is_view_op(node->op);
}

void prune_graph(ggml_cgraph * gf) {
    std::vector<ggml_tensor *> roots;
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) || writes_persistent_memory(node)) {
            roots.push_back(node);
        }
    }
    ggml_graph_clear(gf);
    for (ggml_tensor * root : roots) {
        ggml_build_forward_expand(gf, root);
    }
}

void check_layers_absent(ggml_cgraph * gf, const reuse_runs & runs) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        for (const ggml_tensor * src : node->src) {
            int il = -1;
            if (src && src->op == GGML_OP_NONE && std::sscanf(src->name, "blk.%d.", &il) == 1 && runs.run_of(il)) {
                throw unsupported_error("a layer that always runs needs more of layer " + std::to_string(il) +
                                        " than its output (" + src->name + "); use rho = 0");
            }
        }
    }
}

}  // namespace loradrop
