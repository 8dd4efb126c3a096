#include "loradrop/drop_memory.h"

#include "loradrop/drop_memory_context.h"
#include "loradrop/errors.h"
#include "loradrop/free_memory.h"
#include "loradrop/freed_memory.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <typeinfo>

namespace loradrop {

static constexpr llama_pos end_of_time = std::numeric_limits<llama_pos>::max();

template <typename T>
static const T * as_exactly(const llama_memory_i * memory) {
    return memory && typeid(*memory) == typeid(T) ? static_cast<const T *>(memory) : nullptr;
}

// Returns the model. Its own choice of memory, made on the smallest scale, tells whether LoRA-Drop can take its place.
static const llama_model & check_memory_type(const llama_model & model, const llama_memory_params & params,
                                             const llama_cparams & cparams) {
    llama_cparams small = cparams;
    small.n_ctx         = drop_memory::min_growth;
    small.n_ctx_seq     = drop_memory::min_growth;
    small.n_seq_max     = 1;

    const std::unique_ptr<llama_memory_i> probe(model.create_memory(params, small));

    std::vector<const llama_kv_cache *> caches;
    if (model.hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        if (const auto * plain = as_exactly<llama_kv_cache>(probe.get())) {
            caches = {plain};
        }
    } else if (const auto * pair = as_exactly<llama_kv_cache_iswa>(probe.get())) {
        caches = {pair->get_base(), pair->get_swa()};
    }
    if (caches.empty()) {
        throw unsupported_error("architecture '" + model.arch_name() +
                                "' does not keep its context in a KV cache alone (it is recurrent, hybrid or without a "
                                "cache); use rho = 0");
    }
    std::vector<uint32_t> layers;
    for (const llama_kv_cache * cache : caches) {
        const auto ids = cache->get_layer_ids();
        layers.insert(layers.end(), ids.begin(), ids.end());
    }
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        if (std::find(layers.begin(), layers.end(), il) == layers.end()) {
            throw unsupported_error("layer " + std::to_string(il) + " of architecture '" + model.arch_name() +
                                    "' has no KV cells of its own; use rho = 0");
        }
    }
    return model;
}

drop_memory::drop_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                         const reuse_runs & runs, schedule & sched, std::function<bool()> reserve) :
    model(check_memory_type(model, params, cparams)),
    options(params, cparams),
    n_cells_max(cparams.n_ctx_seq),
    runs(runs),
    sched(sched),
    reserve(std::move(reserve)),
    kept(new_cache(false, n_cells_max)),
    droppable(new_cache(true, std::min(min_growth, n_cells_max))) {
}

layer_cache drop_memory::new_cache(bool for_droppable, uint32_t n_cells) const {
    const int32_t n_layer = static_cast<int32_t>(model.hparams.n_layer());
    const auto    filter  = [=](int32_t il) { return il < n_layer && (runs.run_of(il) != nullptr) == for_droppable; };
    // what a full batch runs again has been in the kept layers' cache alone
    const uint32_t n_rewind = !for_droppable && sched.policy() != refresh_policy::single ? sched.k() : 0;
    return {model, options, filter, n_cells, n_rewind};
}

//
// batches
//

drop_memory::pass::pass(drop_memory & memory, bool lora_step) : memory(memory) {
    memory.in_pass        = true;
    memory.lora_step_pass = lora_step;
}

drop_memory::pass::~pass() {
    memory.in_pass        = false;
    memory.lora_step_pass = false;
}

// Empty when the batch cannot be split.
std::vector<llama_ubatch> drop_memory::split(llama_batch_allocr & balloc, uint32_t n_ubatch) const {
    balloc.split_reset();
    std::vector<llama_ubatch> ubatches;
    while (true) {
        auto ubatch = options.unified || options.n_seq_max == 1 ? balloc.split_simple(n_ubatch)
                                                                : balloc.split_equal(n_ubatch, true, 0);
        if (ubatch.n_tokens == 0) {
            break;
        }
        ubatches.push_back(std::move(ubatch));
    }
    return balloc.get_n_used() < balloc.get_n_tokens() ? std::vector<llama_ubatch>{} : ubatches;
}

llama_memory_context_ptr drop_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    (void)embd_all;
    const auto ubatches = split(balloc, n_ubatch);
    if (ubatches.empty()) {
        return failed_context();
    }
    auto kept_slots = kept.prepare(ubatches);
    if (kept_slots.empty()) {
        return failed_context();
    }
    if (lora_step_pass) {
        return lora_context(kept, std::move(kept_slots), ubatches);
    }
    auto droppable_slots = find_droppable(ubatches);
    if (droppable_slots.empty() || !has_room_for_graphs()) {
        return failed_context();
    }
    return full_context(kept, std::move(kept_slots), droppable, std::move(droppable_slots), ubatches, generation);
}

layer_cache::slot_infos drop_memory::find_droppable(const std::vector<llama_ubatch> & ubatches) {
    while (true) {
        auto slots = droppable.prepare(ubatches);
        if (!slots.empty() || !grow_to(droppable.n_cells() + growth_step())) {
            return slots;
        }
    }
}

uint32_t drop_memory::growth_step() const {
    // an eighth keeps the cost of moving linear in the length of the text
    const uint32_t eighth = droppable.n_cells() / 8 / min_growth * min_growth;
    return std::max(min_growth, eighth);
}

bool drop_memory::grow_to(uint32_t n_cells) {
    n_cells = std::min(n_cells, n_cells_max);
    if (n_cells <= droppable.n_cells()) {
        return false;
    }
    try {
        if (model.n_gpu_layers() == 0) {
            check_free_memory(droppable.bytes() / droppable.n_cells() * n_cells, "it");
        }
        layer_cache larger = new_cache(true, n_cells);
        droppable.move_to(larger);
        droppable = std::move(larger);
    } catch (const std::exception & e) {
        // out of memory: the batch fails, and what is there stays
        LLAMA_LOG_ERROR("no memory for %u cells of the droppable layers: %s\n", n_cells, e.what());
        return false;
    }
    ++generation;
    return true;
}

// A graph that finds too little room when it is about to run ends the process (ggml_backend_sched_alloc_splits).
bool drop_memory::has_room_for_graphs() {
    if (reserved_generation != generation && reserve()) {
        reserved_generation = generation;
        give_back_freed_memory();  // of the smaller cache and its graphs
    }
    return reserved_generation == generation;
}

llama_memory_context_ptr drop_memory::init_full() {
    return full_context(kept, droppable, generation);
}

llama_memory_context_ptr drop_memory::init_update(llama_context * lctx, bool optimize) {
    return std::make_unique<drop_update_context>(kept->init_update(lctx, optimize),
                                                 droppable->init_update(lctx, optimize));
}

bool drop_memory::get_can_shift() const {
    return kept->get_can_shift();
}

//
// sequences
//

template <typename F>
static void for_sequences(llama_seq_id seq_id, F && f) {
    if (seq_id >= 0) {
        f(seq_id);
        return;
    }
    for (llama_seq_id s = 0; s < LLAMA_MAX_SEQ; ++s) {
        f(s);
    }
}

static llama_pos range_begin(llama_pos p0) {
    return std::max(p0, 0);
}

static llama_pos range_end(llama_pos p1) {
    return p1 < 0 ? end_of_time : p1;
}

void drop_memory::drop_ahead() const {
    if (ahead >= 0) {
        const llama_pos first = sched.at(ahead).anchor + 1;
        kept->seq_rm(ahead, first, -1);
        droppable->seq_rm(ahead, first, -1);
        ahead = -1;
    }
}

void drop_memory::clear(bool data) {
    ahead = -1;
    kept->clear(data);
    droppable->clear(data);
    sched.clear();
    state_copies.clear();
}

bool drop_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= 0 && seq_id == ahead && p0 > sched.at(seq_id).anchor) {
        return true;  // there is nothing that the client could see, and what is ahead stays right
    }
    drop_ahead();
    const bool done = kept->seq_rm(seq_id, p0, p1) & droppable->seq_rm(seq_id, p0, p1);
    if (!in_pass) {  // what llama.cpp takes back of a batch that failed, the engine's books do not hold yet
        for_sequences(seq_id, [&](llama_seq_id s) { sched.remove(s, range_begin(p0), range_end(p1)); });
    }
    return done;
}

void drop_memory::seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
    if (from == to) {
        return;
    }
    drop_ahead();
    kept->seq_cp(from, to, p0, p1);
    droppable->seq_cp(from, to, p0, p1);
    sched.copy(from, to, range_begin(p0), range_end(p1));
    if (sched.at(to).ready) {
        state_copies.emplace_back(runs.column_of(from, sched.at(from).row), runs.column_of(to, 0));
    }
}

void drop_memory::seq_keep(llama_seq_id seq_id) {
    drop_ahead();
    kept->seq_keep(seq_id);
    droppable->seq_keep(seq_id);
    if (!options.unified) {
        // llama.cpp looks at the sequence's own stream only
        for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(options.n_seq_max); ++s) {
            if (s != seq_id) {
                kept->seq_rm(s, -1, -1);
                droppable->seq_rm(s, -1, -1);
            }
        }
    }
    sched.keep_only(seq_id);
}

void drop_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    drop_ahead();
    kept->seq_add(seq_id, p0, p1, shift);
    droppable->seq_add(seq_id, p0, p1, shift);
    sched.shift(seq_id, range_begin(p0), range_end(p1), shift);
}

void drop_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    drop_ahead();
    kept->seq_div(seq_id, p0, p1, d);
    droppable->seq_div(seq_id, p0, p1, d);
    // divided positions repeat, so single tokens can no longer be told apart; the next step is a full one
    sched.at(seq_id) = {};
}

llama_pos drop_memory::seq_pos_min(llama_seq_id seq_id) const {
    const llama_pos first = kept->seq_pos_min(seq_id);
    return kept.pair() ? std::max(first, droppable->seq_pos_min(seq_id)) : first;
}

llama_pos drop_memory::seq_pos_max(llama_seq_id seq_id) const {
    const sequence & s = sched.at(seq_id);
    if (seq_id == ahead) {
        return s.anchor;
    }
    return !in_pass && s.n_missing > 0 ? s.lora.back().pos : kept->seq_pos_max(seq_id);
}

bool drop_memory::take_out_lora_tokens(llama_seq_id seq_id) {
    sequence &      s     = sched.at(seq_id);
    const llama_pos first = s.lora.front().pos;
    if (!s.is_unbroken() || (first > 0 && !kept.holds(seq_id, first - 1))) {
        s.lora.clear();
        s.n_missing = 0;
        return false;
    }
    kept->seq_rm(seq_id, first, -1);
    s.n_missing = s.lora.size();
    return true;
}

void drop_memory::copy_states() {
    for (const auto & [from, to] : state_copies) {
        runs.copy_column(from, to);
    }
    state_copies.clear();
}

uint32_t drop_memory::column_with_state(llama_seq_id seq_id) const {
    uint32_t column = runs.column_of(seq_id, sched.at(seq_id).row);
    for (auto copy = state_copies.rbegin(); copy != state_copies.rend(); ++copy) {
        if (copy->second == column) {
            column = copy->first;
        }
    }
    return column;
}

void drop_memory::thin(llama_seq_id seq_id) {
    position_range range;
    while (sched.next_thinned(seq_id, range)) {
        droppable->seq_rm(seq_id, range.first, range.second);
    }
}

//
// sizes
//

std::map<ggml_backend_buffer_type_t, size_t> drop_memory::memory_breakdown() const {
    auto all = kept->memory_breakdown();
    for (const auto & [buft, size] : droppable->memory_breakdown()) {
        all[buft] += size;
    }
    return all;
}

size_t drop_memory::bytes_kept() const {
    return kept.bytes();
}

size_t drop_memory::bytes_droppable() const {
    return droppable.bytes();
}

size_t drop_memory::bytes_full() const {
    return kept.bytes() + droppable.bytes_with_cells_of(kept);
}

uint32_t drop_memory::cells_kept() const {
    return kept.n_cells();
}

uint32_t drop_memory::cells_droppable() const {
    return droppable.n_cells();
}

}  // namespace loradrop
