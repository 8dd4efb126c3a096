// Takes out of a graph what nothing needs any more.
#pragma once

#include "loradrop/reuse_runs.h"

struct ggml_cgraph;

namespace loradrop {

// Rebuilds the graph from its outputs and from its writes into memory that outlives it (KV cells, reuse state),
// in their old order.
void prune_graph(ggml_cgraph * gf);

// Throws unsupported_error when a node still uses a weight of a dropped layer.
void check_layers_absent(ggml_cgraph * gf, const reuse_runs & runs);

}  // namespace loradrop
