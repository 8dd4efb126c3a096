// One attention by itself, for tests and measurements.
#include "bindings.h"
#include "errors.h"
#include "gil.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace loradrop::bindings {

using floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

static void check_shape(const char * name, const floats & x, const std::vector<py::ssize_t> & shape) {
    bool same = x.ndim() == static_cast<py::ssize_t>(shape.size());
    for (size_t i = 0; same && i < shape.size(); ++i) {
        same = x.shape(i) == shape[i];
    }
    if (!same) {
        std::string wanted;
        for (const py::ssize_t n : shape) {
            wanted += (wanted.empty() ? "" : ", ") + std::to_string(n);
        }
        throw py::value_error(std::string(name) + " must have the shape [" + wanted + "]");
    }
}

static void fill(ggml_tensor * t, const floats & from) {
    if (t->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(t, from.data(), 0, ggml_nbytes(t));
        return;
    }
    std::vector<char> converted(ggml_nbytes(t));
    ggml_quantize_chunk(t->type, from.data(), converted.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
    ggml_backend_tensor_set(t, converted.data(), 0, converted.size());
}

// As a cache holds them: the heads of a cell side by side.
static floats by_cell(const floats & x) {
    return py::module_::import("numpy").attr("swapaxes")(x, 1, 2);
}

static ggml_type parse_type(const std::string & name) {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }
    throw py::value_error("type \"" + name + "\": must be f32, f16 or q8_0");
}

static floats attend(const floats & q, const floats & k, const floats & v, const std::optional<floats> & mask,
                     const std::optional<floats> & sinks, float scale, float max_bias, float softcap,
                     const std::string & type, int n_threads) {
    if (q.ndim() != 4 || k.ndim() != 4 || v.ndim() != 4) {
        throw py::value_error("q, k and v must have four dimensions: stream, head, query or cell, element");
    }
    const py::ssize_t streams = q.shape(0), heads = q.shape(1), queries = q.shape(2);
    const py::ssize_t kv_heads = k.shape(1), cells = k.shape(2), value_size = v.shape(3);
    const ggml_type   kv_type = parse_type(type);
    check_shape("k", k, {streams, kv_heads, cells, q.shape(3)});
    check_shape("v", v, {streams, kv_heads, cells, value_size});
    if (q.size() == 0 || k.size() == 0 || v.size() == 0 || heads % kv_heads != 0 || n_threads < 1 ||
        n_threads > GGML_MAX_N_THREADS || q.shape(3) % ggml_blck_size(kv_type) != 0 ||
        value_size % ggml_blck_size(kv_type) != 0) {
        throw py::value_error(
            "attend: nothing may be empty, heads must be a multiple of K/V heads, rows of blocks, and "
            "n_threads from 1 to " +
            std::to_string(GGML_MAX_N_THREADS));
    }
    if (mask) {
        check_shape("mask", *mask, {streams, mask->ndim() == 4 ? mask->shape(1) : 1, queries, cells});
        if (mask->size() == 0 || heads % mask->shape(1) != 0) {
            throw py::value_error("the heads must be a multiple of the mask's");
        }
    }
    if (sinks) {
        check_shape("sinks", *sinks, {heads});
    }
    const abort_guard guard;

    const ggml_context_ptr ctx(ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor *          tq = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, q.shape(3), queries, heads, streams);
    ggml_tensor *          tk = ggml_new_tensor_4d(ctx.get(), kv_type, q.shape(3), kv_heads, cells, streams);
    ggml_tensor *          tv = ggml_new_tensor_4d(ctx.get(), kv_type, value_size, kv_heads, cells, streams);
    ggml_tensor *          tm =
        mask ? ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, cells, queries, mask->shape(1), streams) : nullptr;
    ggml_tensor * ts  = sinks ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, heads) : nullptr;
    ggml_tensor * out = ggml_flash_attn_ext(ctx.get(), tq, ggml_permute(ctx.get(), tk, 0, 2, 1, 3),
                                            ggml_permute(ctx.get(), tv, 0, 2, 1, 3), tm, scale, max_bias, softcap);
    ggml_flash_attn_ext_add_sinks(out, ts);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);

    const ggml_backend_ptr        backend(ggml_backend_cpu_init());
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    if (!buffer) {
        throw std::runtime_error("attend: out of memory");
    }
    fill(tq, q);
    fill(tk, by_cell(k));
    fill(tv, by_cell(v));
    if (tm) {
        fill(tm, *mask);
    }
    if (ts) {
        fill(ts, *sinks);
    }
    floats result({streams, queries, heads, value_size});
    {
        const gil_released release;
        ggml_backend_cpu_set_n_threads(backend.get(), n_threads);
        if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("attend: ggml has failed");
        }
    }
    ggml_backend_tensor_get(out, result.mutable_data(), 0, ggml_nbytes(out));
    return result;
}

void register_cpu_attention(py::module_ & m) {
    m.def("attend", attend, py::arg("q"), py::arg("k"), py::arg("v"), py::kw_only(), py::arg("mask") = py::none(),
          py::arg("sinks") = py::none(), py::arg("scale") = 1.0f, py::arg("max_bias") = 0.0f, py::arg("softcap") = 0.0f,
          py::arg("type") = "f16", py::arg("n_threads") = 1,
          "Attention of q [stream, head, query, element] to k and v [stream, K/V head, cell, element], stored in the "
          "type, on the CPU: [stream, query, head, element]. mask [stream, 1 or head, query, cell] is added to the "
          "scores, sinks [head] take part in the softmax.");
}

}  // namespace loradrop::bindings
