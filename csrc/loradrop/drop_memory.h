// Two KV caches behind llama.cpp's memory interface: kept layers hold every token, droppable layers only those at
// which they ran. Each operation on a sequence goes to both caches and to the schedule.
#pragma once

#include "loradrop/layer_cache.h"
#include "loradrop/reuse_runs.h"
#include "loradrop/schedule.h"

#include "llama-memory.h"

#include <functional>
#include <memory>

struct llama_cparams;
struct llama_model;

namespace loradrop {

class drop_memory : public llama_memory_i {
  public:
    // Cells of the droppable layers' cache at first, and the least that it grows by. llama.cpp attends to cells in
    // blocks of this many, so a smaller step would save nothing.
    static constexpr uint32_t min_growth = 256;

    // Throws unsupported_error when the model's memory is no KV cache, plain or with sliding windows.
    // reserve: makes room for the graphs of a larger cache, false when there is none.
    drop_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                const reuse_runs & runs, schedule & sched, std::function<bool()> reserve);

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;
    void clear(bool data) override;

    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    // The first position is the first that no sliding window of either cache has given up. The last position includes
    // tokens that a failed refill still owes.
    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override;

    //
    // for the engine
    //

    // While a pass runs, batches go where the step says and the schedule is left alone.
    struct pass {
        pass(drop_memory & memory, bool lora_step);
        ~pass();

        pass(const pass &)             = delete;
        pass & operator=(const pass &) = delete;

        drop_memory & memory;
    };

    // The last position that has cells.
    llama_pos last_stored(llama_seq_id seq_id) const { return kept->seq_pos_max(seq_id); }

    // Takes the LoRA tokens since the last refresh out of the kept layers, for a refill to run them again. False when
    // they cannot run again, for they do not follow each other and what is before them; then they stay as they are.
    bool take_out_lora_tokens(llama_seq_id seq_id);

    // Takes LoRA steps out of the kept layers, from a position on.
    void take_out(llama_seq_id seq_id, llama_pos first) { kept->seq_rm(seq_id, first, -1); }

    // Cells of one sequence behind its anchor, which the engine has filled ahead of the client. The client sees nothing
    // of them, and whatever else it does to the memory takes them away first. -1: there are none.
    void         hide_ahead(llama_seq_id seq_id) { ahead = seq_id; }
    llama_seq_id ahead_of() const { return ahead; }
    void         drop_ahead() const;

    // Removes from the droppable layers what has left the window.
    void thin(llama_seq_id seq_id);

    // Copies of reuse state that seq_cp has left to do; they have to wait for the device to be idle.
    bool has_state_copies() const { return !state_copies.empty(); }

    void copy_states();

    //
    // sizes
    //

    size_t   bytes_kept() const;
    size_t   bytes_droppable() const;
    size_t   bytes_full() const;  // what one cache with every token in every layer takes
    size_t   used_bytes() const { return kept.used_bytes() + droppable.used_bytes(); }
    size_t   used_bytes_full() const { return kept.used_bytes() + droppable.bytes_with_tokens_of(kept); }
    uint32_t cells_kept() const;
    uint32_t cells_droppable() const;
    uint32_t growth_step() const;

  private:
    layer_cache               new_cache(bool for_droppable, uint32_t n_cells) const;
    std::vector<llama_ubatch> split(llama_batch_allocr & balloc, uint32_t n_ubatch) const;
    layer_cache::slot_infos   find_droppable(const std::vector<llama_ubatch> & ubatches);
    bool                      grow_to(uint32_t n_cells);
    bool                      has_room_for_graphs();

    // The column that holds the state of the sequence's anchor as long as copies are left to do.
    uint32_t column_with_state(llama_seq_id seq_id) const;

    void forget(llama_seq_id seq_id);
    void read_contents(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags, uint32_t their_k,
                       bool same_schedule);

    template <typename F>
    void for_saved_parts(llama_seq_id seq_id, F && f) const;

    const llama_model & model;
    const cache_options options;
    const uint32_t      n_cells_max;
    const reuse_runs &  runs;
    schedule &          sched;

    const std::function<bool()> reserve;

    layer_cache kept;
    layer_cache droppable;
    uint64_t    generation          = 0;
    uint64_t    reserved_generation = 0;

    bool in_pass        = false;
    bool lora_step_pass = false;

    mutable llama_seq_id ahead = -1;  // a state is whole without what is ahead, so saving takes it away too

    std::vector<std::pair<uint32_t, uint32_t>> state_copies;  // columns, from and to
};

}  // namespace loradrop
