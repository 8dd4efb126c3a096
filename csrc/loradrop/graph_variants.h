// A graph and a scheduler for each kind of pass, so that going from one to another rebuilds nothing. The context holds
// those of the present one; outside of passes these are the full step's, which the rest of llama.cpp expects to find.
#pragma once

#include "ggml-cpp.h"
#include "llama-graph.h"

#include <cstddef>
#include <map>

namespace loradrop {

// 0 is the full step, 1 the LoRA step, n a full step of n tokens that all leave rows of state.
using variant_id = size_t;

constexpr variant_id full_variant  = 0;
constexpr variant_id lora_variant  = 1;
constexpr variant_id first_of_rows = 2;

class graph_variants {
  public:
    struct built {
        ggml_backend_sched_ptr sched;
        llm_graph_result_ptr   graph;
    };

    // sched, graph: the context's
    graph_variants(ggml_backend_sched_ptr & sched, llm_graph_result_ptr & graph) : sched(sched), graph(graph) {}

    // Passes are of this variant while this lives; within it they enter by themselves.
    struct scope {
        scope(graph_variants & all, variant_id id);
        ~scope();

        scope(const scope &)             = delete;
        scope & operator=(const scope &) = delete;

        graph_variants & all;
        const variant_id outer_wanted;
        const variant_id outer_entered;
    };

    // Puts the wanted variant's graph and scheduler into the context.
    void enter();

    // Of a variant that is not entered.
    void put(variant_id id, built b) { parked[id] = std::move(b); }
    void erase(variant_id id) { parked.erase(id); }
    void erase_rows() { parked.erase(parked.lower_bound(first_of_rows), parked.end()); }
    bool has(variant_id id) const { return parked.count(id) > 0; }

    variant_id wanted() const { return wanted_id; }
    variant_id entered() const { return entered_id; }

    // Bytes of the buffers that a variant's passes compute in; of several where they are those of rows.
    size_t buffer_bytes(variant_id id, ggml_backend_t backend) const;

  private:
    ggml_backend_sched_ptr &    sched;
    llm_graph_result_ptr &      graph;
    std::map<variant_id, built> parked;
    variant_id                  wanted_id  = full_variant;
    variant_id                  entered_id = full_variant;
};

}  // namespace loradrop
