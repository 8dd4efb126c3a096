// A context: KV cache, graphs and threads of one decoding.
#pragma once

#include "adapter.h"
#include "model.h"

#include "loradrop/loradrop.h"
#include "loradrop/node_times.h"
#include "loradrop/state_capture.h"

#include "ggml-cpu.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>

namespace loradrop {
class engine;
}

namespace loradrop::bindings {

struct scaled_adapter {
    std::shared_ptr<adapter> lora;
    float                    scale;
};

struct context_options {
    uint32_t    n_ctx;
    uint32_t    n_batch;
    uint32_t    n_ubatch;
    uint32_t    n_seq_max;
    int32_t     n_threads;        // 0: all processors up to 4, half of more; at most all
    int32_t     n_threads_batch;  // 0: all processors; at most all
    std::string flash_attn;
    std::string type_k;
    std::string type_v;
    bool        kv_unified;
    bool        swa_full;  // sliding-window layers keep cells for n_ctx tokens

    std::vector<int32_t>        capture;   // layers whose outputs can be read after a decode
    std::vector<scaled_adapter> adapters;  // of the same model
    bool                        profile;   // time each operation; not together with capture
};

struct batch_request {
    std::vector<llama_token>                 tokens;
    std::optional<std::vector<llama_seq_id>> seq_ids;
    std::optional<std::vector<llama_pos>>    positions;
    std::optional<std::vector<bool>>         outputs;
};

class context {
  public:
    // drop: null to decode in full. Throws what the engine throws, std::bad_alloc, std::invalid_argument.
    context(std::shared_ptr<model> base, const context_options & options, const lora_drop_params * drop);
    ~context();

    context(const context &)             = delete;
    context & operator=(const context &) = delete;

    // Throws decode_error and its kinds, std::invalid_argument.
    void decode(const batch_request & request);

    // The logits [n_vocab] of output i, -1 for the last. Throws std::out_of_range.
    const float * logits(int32_t i);

    // What the last decode has left of the captured layers. Throws std::invalid_argument when there are none.
    const state_capture & states() const;

    // How long each operation of the last decode took. Throws std::invalid_argument without profile.
    const std::vector<node_time> & operations() const;

    // Work on another thread that reads what a decode has left holds one of these.
    class use {
      public:
        explicit use(context & of) : of(of) { of.busy = true; }
        ~use() { of.busy = false; }

        use(const use &)             = delete;
        use & operator=(const use &) = delete;

      private:
        context & of;
    };

    // Asks a decode that runs on another thread to stop.
    void abort() { stop = true; }

    // Stops the next decode after n operations of its graph; failing: as a failed check of ggml does.
    void abort_after(int64_t n, bool failing) {
        operations_left = n;
        check_fails     = failing;
    }

    // Throws decode_error when busy on another thread.
    void close();

    // Does to the cells what shifts and copies of sequences have left to do, and then the work, without the GIL. What
    // throws in it leaves the context broken.
    void run(const std::function<void(llama_context &)> & work);

    // Tokens that it can hold, of all sequences together.
    uint32_t n_ctx() const;

    // Throws decode_error when closed, broken, or busy on another thread.
    llama_context *          get() const;
    llama_memory_t           memory() const { return llama_get_memory(get()); }
    const loradrop::engine * engine() const;

    void check_sequence(llama_seq_id seq_id) const;

    // Throws std::invalid_argument when positions cannot be shifted.
    void check_shift() const;

    const std::shared_ptr<model> base;
    const int64_t                n_positions;  // that a sequence can take
    int32_t                      n_threads = 0;

  private:
    static bool should_stop(void * self);

    bool is_of_another_process() const { return fork != fork_count(); }
    void check_idle() const;
    void check_positions(const batch_request & request, const std::vector<llama_seq_id> & ids) const;

    // Lets go of what cannot be freed: when a check fails amid a graph, the other threads wait for this one at a
    // barrier that it will not reach, so joining them would never return; and in a process that fork() has made there
    // are no such threads.
    void abandon();

    void set_adapters(const std::vector<scaled_adapter> & chosen);

    struct threadpool_deleter {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };

    const int                                            fork = fork_count();
    std::unique_ptr<model::use>                          weights;  // null when closed
    std::unique_ptr<state_capture>                       capture;  // null when nothing is captured
    std::unique_ptr<node_times>                          times;    // null when nothing is timed
    std::unique_ptr<ggml_threadpool, threadpool_deleter> threads;
    std::vector<scaled_adapter>                          adapters;
    llama_context_ptr                                    handle;

    std::atomic<bool>                     busy{false};
    std::atomic<bool>                     stop{false};
    bool                                  settling        = false;  // not to be stopped half-way: it would start anew
    int64_t                               operations_left = -1;     // negative: no limit
    bool                                  check_fails     = false;
    uint32_t                              operations_seen = 0;
    bool                                  broken          = false;
    std::chrono::steady_clock::time_point last_signal_check;
    ggml_type                             type_k = GGML_TYPE_F16;
};

}  // namespace loradrop::bindings
