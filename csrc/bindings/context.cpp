#include "context.h"

#include "errors.h"
#include "gil.h"
#include "log.h"
#include "processors.h"

#include "loradrop/cache_size.h"
#include "loradrop/engine.h"
#include "loradrop/free_memory.h"
#include "loradrop/init_error.h"

#include "llama-context.h"
#include "llama-model.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <map>
#include <new>

namespace py = pybind11;

namespace loradrop::bindings {

// A look at the clock costs a part in a hundred of a small model's shortest operation.
static constexpr uint32_t operations_per_look = 8;

static ggml_type cache_type(const char * field, const std::string & name) {
    static const std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32},   {"f16", GGML_TYPE_F16},   {"bf16", GGML_TYPE_BF16},
        {"q8_0", GGML_TYPE_Q8_0}, {"q5_1", GGML_TYPE_Q5_1}, {"q5_0", GGML_TYPE_Q5_0},
        {"q4_1", GGML_TYPE_Q4_1}, {"q4_0", GGML_TYPE_Q4_0}, {"iq4_nl", GGML_TYPE_IQ4_NL},
    };
    const auto found = types.find(name);
    if (found == types.end()) {
        throw std::invalid_argument(std::string(field) + " = '" + name +
                                    "', expected f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl");
    }
    return found->second;
}

static llama_flash_attn_type flash_attn_type(const std::string & name) {
    static const std::map<std::string, llama_flash_attn_type> types = {
        {"auto", LLAMA_FLASH_ATTN_TYPE_AUTO},
        {"on", LLAMA_FLASH_ATTN_TYPE_ENABLED},
        {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED},
    };
    const auto found = types.find(name);
    if (found == types.end()) {
        throw std::invalid_argument("flash_attn = '" + name + "', expected auto, on or off");
    }
    return found->second;
}

static void check_memory(const llama_model & model, const llama_context_params & params) {
    if (model.n_gpu_layers() > 0) {
        return;
    }
    try {
        check_free_memory(initial_cache_bytes(model, params), "n_ctx = " + std::to_string(params.n_ctx));
    } catch (const std::runtime_error & e) {
        throw std::runtime_error(e.what() +
                                 std::string(" (for the KV cache); lower n_ctx or choose a smaller type_k and type_v"));
    }
}

// More threads than processors would only wait for each other.
static int32_t thread_count(int32_t asked, bool for_batch) {
    const int32_t n = usable_processors();
    if (asked > 0) {
        return std::min(asked, n);
    }
    return for_batch || n <= 4 ? n : n / 2;  // token generation waits for memory, which half the threads can load
}

// Positions that a sequence can take: the rows of the model's table where it has one.
static int64_t position_limit(const llama_model & model) {
    return model.pos_embd ? model.pos_embd->ne[1] : std::numeric_limits<llama_pos>::max();
}

static uint32_t usable_cells(uint32_t n_ctx, uint32_t n_seq_max, int64_t n_positions) {
    return static_cast<uint32_t>(std::min<int64_t>(n_ctx, n_positions * n_seq_max));
}

context::context(std::shared_ptr<model> base_, const context_options & options, const lora_drop_params * drop) :
    base(std::move(base_)), n_positions(position_limit(*base->get())), weights(std::make_unique<model::use>(base)) {
    const abort_guard    guard;
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = usable_cells(options.n_ctx, options.n_seq_max, n_positions);
    params.n_batch              = options.n_batch;
    params.n_ubatch             = options.n_ubatch;
    params.n_seq_max            = options.n_seq_max;
    params.n_threads            = thread_count(options.n_threads, false);
    params.n_threads_batch      = thread_count(options.n_threads_batch, true);
    params.flash_attn_type      = flash_attn_type(options.flash_attn);
    params.type_k               = cache_type("type_k", options.type_k);
    params.type_v               = cache_type("type_v", options.type_v);
    params.kv_unified           = options.kv_unified;
    params.swa_full             = options.swa_full;
    params.abort_callback       = should_stop;
    params.abort_callback_data  = this;
    params.lora_drop            = drop;
    check_memory(*base->get(), params);
    if (!options.capture.empty()) {
        capture                  = std::make_unique<state_capture>(options.capture, *base->get());
        params.cb_eval           = state_capture::on_node;
        params.cb_eval_user_data = capture.get();
    }
    if (options.profile) {
        if (capture) {
            throw std::invalid_argument("profile and capture are not for the same context; make two");
        }
        times                    = std::make_unique<node_times>();
        params.cb_eval           = node_times::on_node;
        params.cb_eval_user_data = times.get();
    }

    n_threads = params.n_threads;
    type_k    = params.type_k;

    auto pool = ggml_threadpool_params_default(std::max(params.n_threads, params.n_threads_batch));
    pool.poll = 1;  // some milliseconds, enough from token to token; the default takes a third of a second from others
    threads.reset(ggml_threadpool_new(&pool));

    clear_logged_errors();
    handle.reset(llama_init_from_model(base->get(), params));
    if (!handle) {
        if (const std::exception_ptr error = take_init_error()) {
            std::rethrow_exception(error);
        }
        throw std::invalid_argument("the context cannot be made: " + logged_errors());
    }
    llama_attach_threadpool(handle.get(), threads.get(), nullptr);
    set_adapters(options.adapters);
}

void context::set_adapters(const std::vector<scaled_adapter> & chosen) {
    std::vector<llama_adapter_lora *> loras;
    std::vector<float>                scales;
    for (const scaled_adapter & a : chosen) {
        if (a.lora->base != base) {
            throw std::invalid_argument(a.lora->path + ": this adapter was loaded for another model");
        }
        loras.push_back(a.lora->get());
        scales.push_back(a.scale);
    }
    adapters = chosen;
    llama_set_adapters_lora(handle.get(), loras.data(), loras.size(), scales.data());
}

context::~context() {
    if (is_of_another_process()) {
        abandon();
    }
    handle.reset();  // before the threads it uses
}

void context::check_idle() const {
    if (busy) {
        throw decode_error("the context is in use on another thread; one thread at a time may use it");
    }
}

void context::close() {
    if (is_of_another_process()) {
        abandon();
        return;
    }
    check_idle();
    handle.reset();
    threads.reset();
    adapters.clear();
    weights.reset();
}

void context::abandon() {
    base->leave();  // the threads may still read its weights, and those of the adapters
    new auto(std::move(adapters));
    weights.reset();
    (void)handle.release();
    (void)threads.release();
}

llama_context * context::get() const {
    if (is_of_another_process()) {
        throw decode_error(
            "the context belongs to the process that has made it, and fork() has copied it without its "
            "threads: make a new one in this process");
    }
    if (broken) {
        throw decode_error("an earlier failure has left the context unusable; make a new one");
    }
    if (!handle) {
        throw decode_error("the context is closed");
    }
    check_idle();
    return handle.get();
}

uint32_t context::n_ctx() const {
    return usable_cells(llama_n_ctx(get()), llama_n_seq_max(get()), n_positions);
}

const loradrop::engine * context::engine() const {
    return loradrop::engine::of(*get());
}

void context::check_sequence(llama_seq_id seq_id) const {
    const auto n = static_cast<llama_seq_id>(llama_n_seq_max(get()));
    if (seq_id < 0 || seq_id >= n) {
        throw std::out_of_range("seq_id = " + std::to_string(seq_id) + ", expected 0 to " + std::to_string(n - 1));
    }
}

// Called between the operations of a graph. Python's signals are looked at now and then, so that Ctrl-C works.
bool context::should_stop(void * data) {
    auto * self = static_cast<context *>(data);
    if (self->settling) {
        return false;
    }
    if (interpreter_ends()) {
        return true;
    }
    if (self->check_fails && self->operations_left == 0) {
        GGML_ABORT("abort_after() has asked for it");
    }
    if (self->stop || self->operations_left == 0) {
        return true;
    }
    self->operations_left -= self->operations_left > 0 ? 1 : 0;
    if (++self->operations_seen % operations_per_look != 0) {
        return false;
    }
    const auto now = std::chrono::steady_clock::now();
    if (!self->busy || now - self->last_signal_check < std::chrono::milliseconds(50)) {
        return false;
    }
    self->last_signal_check = now;
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

void context::check_shift() const {
    if (!llama_memory_can_shift(memory())) {
        throw std::invalid_argument("the positions of this model's context cannot be shifted");
    }
    // llama.cpp turns quantised keys with a matrix that it makes for such heads only (ggml-org/llama.cpp#25636)
    const uint32_t head = base->get()->hparams.n_embd_head_k();
    if (ggml_is_quantized(type_k) && head % 64 != 0) {
        throw std::invalid_argument("type_k = '" + std::string(ggml_type_name(type_k)) +
                                    "': the positions of this model's context cannot be shifted, for it has heads of " +
                                    std::to_string(head) + " channels, not of a multiple of 64; use type_k = 'f16'");
    }
}

void context::run(const std::function<void(llama_context &)> & work) {
    llama_context * ctx = get();
    clear_logged_errors();
    last_signal_check = std::chrono::steady_clock::now();
    busy              = true;
    try {
        const gil_released release;
        const abort_guard  guard;
        settling = true;
        ctx->memory_update(false);
        settling = false;
        work(*ctx);
    } catch (const engine_abort &) {
        busy   = false;
        broken = true;
        abandon();
        throw;
    } catch (...) {
        busy   = false;
        broken = true;
        throw;
    }
    busy = false;
}

template <typename T>
static void check_length(const char * field, const std::optional<std::vector<T>> & values, size_t n) {
    if (values && values->size() != n) {
        throw std::invalid_argument(std::string(field) + " has " + std::to_string(values->size()) + " entries for " +
                                    std::to_string(n) + " tokens");
    }
}

// llama.cpp looks positions up in a model's table on any of its threads, and a check that fails there ends the process.
void context::check_positions(const batch_request & request, const std::vector<llama_seq_id> & ids) const {
    std::map<llama_seq_id, int64_t> last;
    for (size_t i = 0; i < ids.size(); ++i) {
        int64_t pos;
        if (request.positions) {
            pos = (*request.positions)[i];
        } else {
            pos = ++last.try_emplace(ids[i], llama_memory_seq_pos_max(memory(), ids[i])).first->second;
        }
        if (pos < 0) {
            throw std::invalid_argument("positions[" + std::to_string(i) + "] = " + std::to_string(pos) +
                                        ", expected 0 or more");
        }
        if (pos >= n_positions) {
            throw context_full_error("no room for position " + std::to_string(pos) + " of sequence " +
                                     std::to_string(ids[i]) + ": the model has " + std::to_string(n_positions) +
                                     " positions");
        }
    }
}

void context::decode(const batch_request & request) {
    llama_context * ctx = get();
    const size_t    n   = request.tokens.size();
    if (n == 0) {
        throw std::invalid_argument("tokens is empty");
    }
    if (n > llama_n_batch(ctx)) {
        throw std::invalid_argument("tokens has " + std::to_string(n) + " entries, n_batch is " +
                                    std::to_string(llama_n_batch(ctx)));
    }
    check_length("seq_ids", request.seq_ids, n);
    check_length("positions", request.positions, n);
    check_length("outputs", request.outputs, n);

    std::vector<llama_token>    tokens = request.tokens;
    std::vector<llama_seq_id>   ids    = request.seq_ids.value_or(std::vector<llama_seq_id>(n, 0));
    std::vector<llama_pos>      pos    = request.positions.value_or(std::vector<llama_pos>{});
    std::vector<int32_t>        n_ids(n, 1);
    std::vector<llama_seq_id *> id_pointers;
    std::vector<int8_t>         outputs;
    for (const llama_token t : tokens) {
        base->check_token(t);
    }
    for (llama_seq_id & id : ids) {
        check_sequence(id);
        id_pointers.push_back(&id);
    }
    check_positions(request, ids);
    if (request.outputs) {
        outputs.assign(request.outputs->begin(), request.outputs->end());
    }
    const llama_batch batch = {static_cast<int32_t>(n),
                               tokens.data(),
                               nullptr,
                               request.positions ? pos.data() : nullptr,
                               n_ids.data(),
                               id_pointers.data(),
                               request.outputs ? outputs.data() : nullptr};

    if (capture) {
        capture->begin();
    }
    if (times) {
        times->begin();
    }
    int status = 0;
    stop       = false;
    run([&](llama_context & self) {
        status = llama_decode(&self, batch);
        llama_synchronize(&self);
    });
    operations_left = -1;

    switch (status) {
        case 0:
            if (capture) {
                capture->finish(ids);
            }
            return;
        case 1:
            if (const std::string errors = logged_errors(); !errors.empty()) {
                throw decode_error("not enough memory to decode " + std::to_string(n) + " tokens: " + errors);
            }
            throw context_full_error("no room for " + std::to_string(n) +
                                     " tokens in a context of n_ctx = " + std::to_string(llama_n_ctx(ctx)));
        case 2:
            if (PyErr_Occurred()) {
                throw py::error_already_set();
            }
            throw decode_aborted("the decode was asked to stop");
        case -1:
            throw std::invalid_argument("the batch is not valid: " + logged_errors());
        default:
            throw decode_error("the decode failed: " + logged_errors());
    }
}

const state_capture & context::states() const {
    get();
    if (!capture) {
        throw std::invalid_argument("the context was made without capture");
    }
    return *capture;
}

const std::vector<node_time> & context::operations() const {
    get();
    if (!times) {
        throw std::invalid_argument("the context was made without profile");
    }
    return times->all();
}

const float * context::logits(int32_t i) {
    const abort_guard guard;
    clear_logged_errors();
    const float * row = llama_get_logits_ith(get(), i);
    if (!row) {
        throw std::out_of_range("output " + std::to_string(i) + " has no logits: " + logged_errors());
    }
    return row;
}

}  // namespace loradrop::bindings
