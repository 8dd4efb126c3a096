#include "loradrop/drop_memory.h"

#include "loradrop/drop_memory_context.h"
#include "loradrop/errors.h"
#include "loradrop/kv_growth.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <typeinfo>

namespace loradrop {

// llama.cpp attends to cells in blocks of this many, so a smaller step would save nothing.
static constexpr uint32_t min_growth = 256;

static constexpr llama_pos end_of_time = std::numeric_limits<llama_pos>::max();

// The model's own choice of memory, made on the smallest scale, tells whether LoRA-Drop can take its place.
static void check_memory_type(const llama_model & model, const llama_memory_params & params,
                              const llama_cparams & cparams) {
    llama_cparams small = cparams;
    small.n_ctx         = min_growth;
    small.n_ctx_seq     = min_growth;
    small.n_seq_max     = 1;

    const std::unique_ptr<llama_memory_i> probe(model.create_memory(params, small));
    const auto *                          memory = probe.get();
    if (!memory || typeid(*memory) != typeid(llama_kv_cache)) {
        throw unsupported_error("architecture '" + model.arch_name() +
                                "' does not keep its context in one plain KV cache (it is recurrent, hybrid, "
                                "sliding-window or without a cache); use rho = 0");
    }
    const auto layers = static_cast<const llama_kv_cache *>(memory)->get_layer_ids();
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        if (std::find(layers.begin(), layers.end(), il) == layers.end()) {
            throw unsupported_error("layer " + std::to_string(il) + " of architecture '" + model.arch_name() +
                                    "' has no KV cells of its own; use rho = 0");
        }
    }
}

drop_memory::drop_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                         const reuse_runs & runs, schedule & sched) :
    model(model),
    params(params),
    runs(runs),
    sched(sched),
    v_trans(!cparams.flash_attn),
    offload(cparams.offload_kqv),
    unified(cparams.kv_unified),
    n_cells_max(cparams.n_ctx_seq),
    n_seq_max(cparams.n_seq_max) {
    check_memory_type(model, params, cparams);
    kept      = new_cache(false, n_cells_max);
    droppable = new_cache(true, std::min(min_growth, n_cells_max));
}

std::unique_ptr<llama_kv_cache> drop_memory::new_cache(bool for_droppable, uint32_t n_cells) const {
    const int32_t n_layer = static_cast<int32_t>(model.hparams.n_layer());
    const auto    filter  = [=](int32_t il) { return il < n_layer && (runs.run_of(il) != nullptr) == for_droppable; };
    return std::make_unique<llama_kv_cache>(model, model.hparams, params.type_k, params.type_v, v_trans, offload,
                                            unified, n_cells, n_seq_max, 1, model.hparams.n_swa, model.hparams.swa_type,
                                            nullptr, filter, nullptr, nullptr);
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
        auto ubatch = unified || n_seq_max == 1 ? balloc.split_simple(n_ubatch) : balloc.split_equal(n_ubatch, true, 0);
        if (ubatch.n_tokens == 0) {
            break;
        }
        ubatches.push_back(std::move(ubatch));
    }
    return balloc.get_n_used() < balloc.get_n_tokens() ? std::vector<llama_ubatch>{} : ubatches;
}

llama_memory_context_ptr drop_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    (void)embd_all;
    const auto failed = [] { return std::make_unique<drop_memory_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE); };

    const auto ubatches = split(balloc, n_ubatch);
    if (ubatches.empty()) {
        return failed();
    }
    auto kept_slots = kept->prepare(ubatches);
    if (kept_slots.empty()) {
        return failed();
    }
    if (lora_step_pass) {
        return std::make_unique<drop_memory_context>(*kept, std::move(kept_slots), ubatches);
    }
    auto droppable_slots = find_droppable(ubatches);
    if (droppable_slots.empty()) {
        return failed();
    }
    return std::make_unique<drop_memory_context>(*kept, std::move(kept_slots), *droppable, std::move(droppable_slots),
                                                 ubatches, generation);
}

llama_kv_cache::slot_info_vec_t drop_memory::find_droppable(const std::vector<llama_ubatch> & ubatches) {
    while (true) {
        auto slots = droppable->prepare(ubatches);
        if (!slots.empty() || !grow_to(droppable->get_size() + growth_step())) {
            return slots;
        }
    }
}

uint32_t drop_memory::growth_step() const {
    // an eighth keeps the cost of moving linear in the length of the text
    const uint32_t eighth = droppable->get_size() / 8 / min_growth * min_growth;
    return std::max(min_growth, eighth);
}

bool drop_memory::grow_to(uint32_t n_cells) {
    n_cells = std::min(n_cells, n_cells_max);
    if (n_cells <= droppable->get_size()) {
        return false;
    }
    std::unique_ptr<llama_kv_cache> larger;
    try {
        larger = new_cache(true, n_cells);
    } catch (const std::exception &) {
        return false;  // out of memory: the batch fails, and what is there stays
    }
    move_cells(*droppable, *larger);
    droppable = std::move(larger);
    ++generation;
    return true;
}

llama_memory_context_ptr drop_memory::init_full() {
    return std::make_unique<drop_memory_context>(*kept, *droppable, generation);
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
void drop_memory::for_sequences(llama_seq_id seq_id, F && f) {
    if (in_pass) {
        return;
    }
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

void drop_memory::clear(bool data) {
    kept->clear(data);
    droppable->clear(data);
    sched.clear();
    state_copies.clear();
}

bool drop_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const bool done = kept->seq_rm(seq_id, p0, p1) & droppable->seq_rm(seq_id, p0, p1);
    for_sequences(seq_id, [&](llama_seq_id s) { sched.remove(s, range_begin(p0), range_end(p1)); });
    return done;
}

void drop_memory::seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
    if (from == to) {
        return;
    }
    kept->seq_cp(from, to, p0, p1);
    droppable->seq_cp(from, to, p0, p1);
    sched.copy(from, to, range_begin(p0), range_end(p1));
    if (sched.at(to).ready) {
        state_copies.emplace_back(from, to);
    }
}

void drop_memory::seq_keep(llama_seq_id seq_id) {
    kept->seq_keep(seq_id);
    droppable->seq_keep(seq_id);
    sched.keep_only(seq_id);
}

void drop_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    kept->seq_add(seq_id, p0, p1, shift);
    droppable->seq_add(seq_id, p0, p1, shift);
    sched.shift(seq_id, range_begin(p0), range_end(p1), shift);
}

void drop_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    kept->seq_div(seq_id, p0, p1, d);
    droppable->seq_div(seq_id, p0, p1, d);
    // divided positions repeat, so single tokens can no longer be told apart; the next step is a full one
    sched.at(seq_id) = {};
}

llama_pos drop_memory::seq_pos_min(llama_seq_id seq_id) const {
    return kept->seq_pos_min(seq_id);
}

llama_pos drop_memory::seq_pos_max(llama_seq_id seq_id) const {
    const sequence & s = sched.at(seq_id);
    return !in_pass && s.n_missing > 0 ? s.lora.back().pos : kept->seq_pos_max(seq_id);
}

void drop_memory::take_out_lora_tokens(llama_seq_id seq_id) {
    sequence & s = sched.at(seq_id);
    kept->seq_rm(seq_id, s.lora.front().pos, -1);
    s.n_missing = s.lora.size();
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

static size_t bytes_of(const llama_kv_cache & cache) {
    size_t total = 0;
    for (const auto & [buft, size] : cache.memory_breakdown()) {
        total += size;
    }
    return total;
}

std::map<ggml_backend_buffer_type_t, size_t> drop_memory::memory_breakdown() const {
    auto all = kept->memory_breakdown();
    for (const auto & [buft, size] : droppable->memory_breakdown()) {
        all[buft] += size;
    }
    return all;
}

size_t drop_memory::bytes_kept() const {
    return bytes_of(*kept);
}

size_t drop_memory::bytes_droppable() const {
    return bytes_of(*droppable);
}

size_t drop_memory::bytes_full() const {
    return bytes_kept() + bytes_droppable() / droppable->get_size() * n_cells_max;
}

uint32_t drop_memory::cells_kept() const {
    return kept->get_size();
}

uint32_t drop_memory::cells_droppable() const {
    return droppable->get_size();
}

}  // namespace loradrop
