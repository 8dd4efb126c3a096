// How long each operation of a decode takes.
//
// llama.cpp's own callback on graph nodes asks before and tells after each of them. Asked for all, the back ends run
// them one by one, without what they would fuse or overlap; so a profiled step is slower than others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct ggml_tensor;

namespace loradrop {

struct node_time {
    std::string operation;  // ggml's name of it
    std::string name;       // of the weights that it reads, else of its result
    std::string type;       // of these weights; empty without
    size_t      n_bytes;    // and their bytes
    int64_t     nanoseconds;
};

class node_times {
  public:
    // For llama_context_params::cb_eval; its user data is the node_times.
    static bool on_node(ggml_tensor * node, bool ask, void * times);

    // A decode begins: what the last one has left is gone.
    void begin() { nodes.clear(); }

    // Of the last decode, in its order.
    const std::vector<node_time> & all() const { return nodes; }

  private:
    int64_t                started = 0;
    std::vector<node_time> nodes;
};

}  // namespace loradrop
