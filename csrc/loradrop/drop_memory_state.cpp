// Saving and restoring: both caches, the schedule, and the reuse state.
#include "loradrop/corrector.h"
#include "loradrop/drop_memory.h"

#include "ggml-backend.h"
#include "llama-io.h"

#include <stdexcept>

namespace loradrop {

static constexpr uint32_t state_magic   = 0x504f5244;  // "DROP"
static constexpr uint32_t state_version = 2;

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
}

sequence read_sequence(llama_io_read_i & io) {
    sequence s;
    s.ready         = read_value<uint8_t>(io) != 0;
    s.sampled       = read_value<uint8_t>(io) != 0;
    s.anchor        = read_value<int32_t>(io);
    const auto lora = read_value<uint64_t>(io);
    for (uint64_t i = 0; i < lora; ++i) {
        s.lora.push_back(read_value<lora_token>(io));
    }
    s.n_missing          = read_value<uint64_t>(io);
    const auto thinnable = read_value<uint64_t>(io);
    for (uint64_t i = 0; i < thinnable; ++i) {
        const auto first = read_value<int32_t>(io);
        const auto end   = read_value<int32_t>(io);
        s.thinnable.emplace_back(first, end);
    }
    check(s.n_missing <= s.lora.size(), "the number of pending tokens");
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
    write_value(io, state_magic);
    write_value(io, state_version);
    const std::string layout = layout_hash(model);
    io.write(layout.data(), layout.size());
    const auto ours = signature(runs);
    write_value<uint64_t>(io, ours.size());
    io.write(ours.data(), ours.size() * sizeof(ours[0]));
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
                io.write_tensor(t, slot_with_state(s) * t->nb[1], t->nb[1]);
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
    const auto k      = read_value<uint32_t>(io);
    const auto policy = read_value<refresh_policy>(io);

    copy_states();
    forget(seq_id);
    try {
        read_contents(io, seq_id, flags, k == sched.k() && policy == sched.policy());
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
                                bool same_schedule) {
    grow_to(read_value<uint32_t>(io));
    for (const layer_cache * cache : {&kept, &droppable}) {
        for_saved_parts(seq_id, [&](llama_seq_id s) { (*cache)->state_read(io, s, flags); });
    }

    const llama_seq_id begin = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id end   = seq_id < 0 ? static_cast<llama_seq_id>(runs.n_slots()) : seq_id + 1;
    for (llama_seq_id s = begin; s < end; ++s) {
        sequence read = read_sequence(io);
        check(same_schedule || read.lora.empty(),
              "k or the refresh policy, which may differ only where no LoRA step has followed a full one");
        read.ready  = read.ready && static_cast<uint32_t>(s) < runs.n_slots();
        sched.at(s) = std::move(read);
        for (const reuse_run & run : runs.runs()) {
            for (ggml_tensor * t : run.states()) {
                io.read_tensor(t, runs.slot_of(s) * t->nb[1], t->nb[1]);
            }
        }
    }
}

}  // namespace loradrop
