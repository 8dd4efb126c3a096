// Saving and restoring: both caches, the schedule, and the reuse state.
#include "loradrop/corrector.h"
#include "loradrop/drop_memory.h"

#include "ggml-backend.h"
#include "llama-io.h"
#include "llama-model.h"
#include "llama-vocab.h"

#include <algorithm>
#include <stdexcept>

namespace loradrop {

static constexpr uint32_t state_magic   = 0x504f5244;  // "DROP"
static constexpr uint32_t state_version = 4;

namespace {

template <typename T>
void write_value(llama_io_write_i & io, const T & value) {
    io.write(&value, sizeof(value));
}

template <typename T>
T read_value(llama_io_read_i & io) {
    T value;
    io.read(&value, sizeof(value));
    return value;
}

void check(bool same, const char * what) {
    if (!same) {
        throw std::runtime_error(std::string("the saved state does not fit this context: it differs in ") + what);
    }
}

void check_whole(bool possible, const char * what) {
    if (!possible) {
        throw std::runtime_error(std::string("the saved state is damaged: ") + what + " cannot be");
    }
}

// What has to be equal for the state of one context to mean the same in another.
std::vector<int64_t> signature(const reuse_runs & runs) {
    std::vector<int64_t> out;
    for (const reuse_run & run : runs.runs()) {
        out.insert(out.end(), {run.span.first, run.span.last, static_cast<int64_t>(run.rule)});
        for (const ggml_tensor * t : run.states()) {
            out.push_back(t->ne[0]);
        }
    }
    return out;
}

void write_sequence(llama_io_write_i & io, const sequence & s) {
    write_value<uint8_t>(io, s.ready);
    write_value<uint8_t>(io, s.sampled);
    write_value(io, s.anchor);
    write_value<uint64_t>(io, s.lora.size());
    for (const lora_token & t : s.lora) {
        write_value(io, t);
    }
    write_value<uint64_t>(io, s.n_missing);
    write_value<uint64_t>(io, s.thinnable.size());
    for (const position_range & r : s.thinnable) {
        write_value(io, r.first);
        write_value(io, r.second);
    }
    write_value(io, s.n_exact);
    write_value<uint8_t>(io, s.exact);
}

// k: of the context that saved it. last_stored: the last position of the sequence that has cells.
sequence read_sequence(llama_io_read_i & io, uint32_t k, int32_t n_vocab, llama_pos last_stored) {
    sequence s;
    s.ready             = read_value<uint8_t>(io) != 0;
    s.sampled           = read_value<uint8_t>(io) != 0;
    s.anchor            = read_value<int32_t>(io);
    const auto lora     = read_value<uint64_t>(io);
    const bool possible = s.anchor >= -1 && s.anchor <= last_stored;
    check_whole(possible || !s.ready, "the place of the last full step");
    s.anchor = std::clamp(s.anchor, -1, last_stored);  // what has been cut off may have left another one
    check_whole(lora <= k, "the number of LoRA steps");
    for (uint64_t i = 0; i < lora; ++i) {
        const auto t = read_value<lora_token>(io);
        check_whole(t.token >= 0 && t.token < n_vocab, "a token");
        check_whole(t.pos > (s.lora.empty() ? -1 : s.lora.back().pos), "a position");
        check_whole(t.pos <= last_stored + static_cast<int64_t>(k), "a position");
        s.lora.push_back(t);
    }
    s.n_missing = read_value<uint64_t>(io);
    check_whole(s.n_missing == 0 || s.n_missing == lora, "the number of pending tokens");
    check_whole(s.n_missing == 0 || s.lora.front().pos > last_stored, "the place of pending tokens");
    const auto thinnable = read_value<uint64_t>(io);
    for (uint64_t i = 0; i < thinnable; ++i) {
        const auto first = read_value<int32_t>(io);
        const auto end   = read_value<int32_t>(io);
        check_whole(first >= 0 && first < end && end <= last_stored + 1, "a range of positions");
        s.thinnable.emplace_back(first, end);
    }
    s.n_exact = read_value<int32_t>(io);
    s.exact   = read_value<uint8_t>(io) != 0;
    check_whole(s.n_exact >= 0 && s.n_exact <= last_stored + 1, "the number of exact tokens");
    return s;
}

}  // namespace

// Of a whole cache with several streams llama.cpp restores the last one only, so there it goes by sequences.
template <typename F>
void drop_memory::for_saved_parts(llama_seq_id seq_id, F && f) const {
    if (seq_id >= 0 || options.unified || options.n_seq_max == 1) {
        f(seq_id);
        return;
    }
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(options.n_seq_max); ++s) {
        f(s);
    }
}

void drop_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    drop_ahead();
    write_value(io, state_magic);
    write_value(io, state_version);
    const std::string layout = layout_hash(model);
    io.write(layout.data(), layout.size());
    const auto ours = signature(runs);
    write_value<uint64_t>(io, ours.size());
    io.write(ours.data(), ours.size() * sizeof(ours[0]));
    write_value<uint64_t>(io, runs.weight_hash());
    write_value<uint32_t>(io, sched.k());
    write_value(io, sched.policy());
    write_value<uint32_t>(io, droppable.n_cells());

    for (const layer_cache * cache : {&kept, &droppable}) {
        for_saved_parts(seq_id, [&](llama_seq_id s) { (*cache)->state_write(io, s, flags); });
    }

    const llama_seq_id begin = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id end   = seq_id < 0 ? static_cast<llama_seq_id>(runs.n_slots()) : seq_id + 1;
    for (llama_seq_id s = begin; s < end; ++s) {
        write_sequence(io, sched.at(s));
        for (const reuse_run & run : runs.runs()) {
            for (ggml_tensor * t : run.states()) {
                io.write_tensor(t, column_with_state(s) * t->nb[1], t->nb[1]);
            }
        }
    }
}

void drop_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    check(read_value<uint32_t>(io) == state_magic, "kind; it was saved without LoRA-Drop");
    check(read_value<uint32_t>(io) == state_version, "version");
    const std::string our_layout = layout_hash(model);
    std::string       layout     = our_layout;
    io.read(layout.data(), layout.size());
    check(layout == our_layout, "the model");
    const auto ours = signature(runs);
    check(read_value<uint64_t>(io) == ours.size(), "the dropped layers");
    std::vector<int64_t> theirs(ours.size());
    io.read(theirs.data(), theirs.size() * sizeof(theirs[0]));
    check(theirs == ours, "the dropped layers or the reuse rule");
    check(read_value<uint64_t>(io) == runs.weight_hash(), "the corrector's weights");
    const auto k      = read_value<uint32_t>(io);
    const auto policy = read_value<refresh_policy>(io);

    check(sched.policy() != refresh_policy::verify || policy == refresh_policy::verify,
          "the refresh policy; only what was saved under verify is exact");

    copy_states();
    if (!(flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)) {  // of these the caches without windows keep what they hold
        forget(seq_id);
    }
    try {
        read_contents(io, seq_id, flags, k, k == sched.k() && policy == sched.policy());
    } catch (...) {
        forget(seq_id);
        throw;
    }
}

void drop_memory::forget(llama_seq_id seq_id) {
    if (seq_id < 0) {
        clear(false);
    } else {
        seq_rm(seq_id, -1, -1);
    }
}

void drop_memory::read_contents(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags,
                                uint32_t their_k, bool same_schedule) {
    grow_to(read_value<uint32_t>(io));
    for (const layer_cache * cache : {&kept, &droppable}) {
        for_saved_parts(seq_id, [&](llama_seq_id s) { (*cache)->state_read(io, s, flags); });
    }

    const llama_seq_id begin = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id end   = seq_id < 0 ? static_cast<llama_seq_id>(runs.n_slots()) : seq_id + 1;
    for (llama_seq_id s = begin; s < end; ++s) {
        sequence read = read_sequence(io, their_k, model.vocab.n_tokens(), last_stored(s));
        check(same_schedule || read.lora.empty(),
              "k or the refresh policy, which may differ only where no LoRA step has followed a full one");
        read.ready  = read.ready && static_cast<uint32_t>(s) < runs.n_slots();
        sched.at(s) = std::move(read);
        for (const reuse_run & run : runs.runs()) {
            for (ggml_tensor * t : run.states()) {
                io.read_tensor(t, runs.column_of(s, 0) * t->nb[1], t->nb[1]);
            }
        }
    }
}

}  // namespace loradrop
