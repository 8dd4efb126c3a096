#include "loradrop/graph_variants.h"

#include <utility>

namespace loradrop {

graph_variants::scope::scope(graph_variants & all, variant_id id) :
    all(all), outer_wanted(all.wanted_id), outer_entered(all.entered_id) {
    all.wanted_id = id;
}

graph_variants::scope::~scope() {
    all.wanted_id = outer_entered;
    all.enter();
    all.wanted_id = outer_wanted;
}

void graph_variants::enter() {
    if (entered_id == wanted_id) {
        return;
    }
    parked[entered_id] = {std::move(sched), std::move(graph)};
    built & next       = parked.at(wanted_id);
    sched              = std::move(next.sched);
    graph              = std::move(next.graph);
    parked.erase(wanted_id);
    entered_id = wanted_id;
}

size_t graph_variants::buffer_bytes(variant_id id, ggml_backend_t backend) const {
    size_t total = id == entered_id ? ggml_backend_sched_get_buffer_size(sched.get(), backend) : 0;
    for (const auto & [other, b] : parked) {
        if (other == id || (id == full_variant && other >= first_of_rows)) {
            total += ggml_backend_sched_get_buffer_size(b.sched.get(), backend);
        }
    }
    return total;
}

}  // namespace loradrop
