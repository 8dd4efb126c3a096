// One product of weights with activations on ggml's CPU back end, for tests of the kernels in csrc/cpu.
#include "bindings.h"
#include "errors.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <string>

namespace py = pybind11;

namespace loradrop::bindings {

using float_array = py::array_t<float, py::array::c_style | py::array::forcecast>;
using int_array   = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

static ggml_type parse_type(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (ggml_type_name(type) && name == ggml_type_name(type) && ggml_get_type_traits_cpu(type)->vec_dot) {
            return type;
        }
    }
    throw py::value_error("type \"" + name + "\": no type of weights that ggml's CPU back end multiplies");
}

// The buffer type in which ggml interleaves rows; null in a build without it.
static ggml_backend_buffer_type_t interleaving_buffer_type() {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const auto         get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t * type = get ? get(cpu) : nullptr; type && *type; ++type) {
        if (std::strcmp(ggml_backend_buft_name(*type), "CPU_REPACK") == 0) {
            return *type;
        }
    }
    return nullptr;
}

static float_array cpu_product(const std::string & type_name, const py::bytes & weights, const float_array & x,
                               const std::optional<int_array> & experts, int n_experts, bool interleaved,
                               int n_threads) {
    const ggml_type        type = parse_type(type_name);
    const std::string_view data = weights;
    if (x.ndim() != 2 + (experts ? 1 : 0)) {
        throw py::value_error("x: has " + std::to_string(x.ndim()) + " dimensions, not " + (experts ? "3" : "2"));
    }
    if (n_threads < 1 || n_threads > 64) {
        throw py::value_error("n_threads=" + std::to_string(n_threads) + ": must be from 1 to 64");
    }
    const int64_t k = x.shape(x.ndim() - 1);
    if (k == 0 || k % ggml_blck_size(type) != 0) {
        throw py::value_error("x: rows of " + std::to_string(k) + " values are no blocks of " + type_name);
    }
    const size_t row_bytes = ggml_row_size(type, k);
    if (n_experts < 1 || data.empty() || data.size() % (row_bytes * n_experts) != 0) {
        throw py::value_error("weights: " + std::to_string(data.size()) + " bytes are no rows of " +
                              std::to_string(row_bytes) + " for " + std::to_string(n_experts) + " experts");
    }
    const auto rows = static_cast<int64_t>(data.size() / row_bytes / n_experts);

    const abort_guard      guard;
    const ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    const ggml_context_ptr ctx_w(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}));
    const ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), n_threads);

    ggml_tensor *              w            = experts ? ggml_new_tensor_3d(ctx_w.get(), type, k, rows, n_experts)
                                                      : ggml_new_tensor_2d(ctx_w.get(), type, k, rows);
    ggml_backend_buffer_type_t weights_type = interleaved ? interleaving_buffer_type() : ggml_backend_cpu_buffer_type();
    if (!weights_type) {
        throw py::value_error("interleaved=True: this build of ggml interleaves no weights");
    }
    const ggml_backend_buffer_ptr weights_buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx_w.get(), weights_type));
    if (interleaved && !w->extra) {
        throw py::value_error("interleaved=True: ggml does not interleave " + std::to_string(rows) + " rows of " +
                              type_name + " on this processor");
    }
    ggml_backend_tensor_set(w, data.data(), 0, data.size());

    ggml_tensor * result = nullptr;
    ggml_tensor * ids    = nullptr;
    ggml_tensor * y      = nullptr;
    if (experts) {
        y      = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, k, x.shape(1), x.shape(0));
        ids    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, experts->shape(1), experts->shape(0));
        result = ggml_mul_mat_id(ctx.get(), w, y, ids);
    } else {
        y      = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, k, x.shape(0));
        result = ggml_mul_mat(ctx.get(), w, y);
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, result);
    const ggml_backend_buffer_ptr buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
    ggml_backend_tensor_set(y, x.data(), 0, ggml_nbytes(y));
    if (ids) {
        ggml_backend_tensor_set(ids, experts->data(), 0, ggml_nbytes(ids));
    }
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
        throw std::bad_alloc();
    }
    float_array out(experts ? std::vector<py::ssize_t>{result->ne[2], result->ne[1], result->ne[0]}
                            : std::vector<py::ssize_t>{result->ne[1], result->ne[0]});
    ggml_backend_tensor_get(result, out.mutable_data(), 0, ggml_nbytes(result));
    return out;
}

void register_cpu_products(py::module_ & m) {
    m.def("cpu_product", cpu_product, py::arg("type"), py::arg("weights"), py::arg("x"), py::kw_only(),
          py::arg("experts") = py::none(), py::arg("n_experts") = 1, py::arg("interleaved") = false,
          py::arg("n_threads") = 1,
          "The product of weights, rows of a type of ggml's (\"q4_K\", ...) as they lie in a file, with x (float32 "
          "[columns, k]): float32 [columns, rows]. interleaved: let ggml interleave the rows first, as it does with a "
          "model's. experts: int32 [tokens, n], of n_experts matrices those that each token takes; x is [tokens, 1 or "
          "n, k] then, and the result [tokens, n, rows].");
}

}  // namespace loradrop::bindings
