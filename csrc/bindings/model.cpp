#include "model.h"

#include "bindings.h"
#include "deep_stack.h"
#include "errors.h"
#include "gil.h"
#include "log.h"

#include "loradrop/corrector.h"
#include "loradrop/huge_pages.h"

#include "ggml-backend-impl.h"
#include "llama-model.h"

#include <pybind11/stl.h>

#include <filesystem>
#include <limits>

namespace py = pybind11;

namespace loradrop::bindings {

static llama_model * load(const std::string & path, int32_t n_gpu_layers, bool use_mmap, bool use_hugepages) {
    if (!std::filesystem::is_regular_file(std::filesystem::u8path(path))) {
        throw model_error(path + ": no such file");
    }
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers       = n_gpu_layers;
    params.load_mode          = use_mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.use_hugepages      = use_hugepages;

    clear_logged_errors();
    llama_model * loaded = nullptr;
    try {
        const abort_guard guard;
        loaded = llama_model_load_from_file(path.c_str(), params);
    } catch (const std::exception & e) {
        throw model_error(path + ": cannot be loaded: " + e.what());
    }
    if (!loaded) {
        throw model_error(path + ": cannot be loaded as a GGUF model: " + logged_errors());
    }
    return loaded;
}

model::model(const std::string & path, int32_t n_gpu_layers, bool use_mmap, bool use_hugepages) :
    path(path), handle(load(path, n_gpu_layers, use_mmap, use_hugepages)) {
}

model::~model() {
    if (cannot_be_freed()) {
        (void)handle.release();
    }
}

// A GPU's driver does not work in a process that fork() has made.
bool model::cannot_be_freed() const {
    return left || fork != fork_count();
}

llama_model * model::get() const {
    if (!handle) {
        throw model_error(path + ": the model is closed; load it again");
    }
    return handle.get();
}

void model::close() {
    if (n_users > 0) {
        throw std::runtime_error(path + ": the model is in use; close its contexts and adapters first");
    }
    if (cannot_be_freed()) {
        (void)handle.release();
    }
    handle.reset();
}

void model::check_token(llama_token token) const {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab());
    if (token < 0 || token >= n_vocab) {
        throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary of " +
                                std::to_string(n_vocab));
    }
}

void model::check_tokenizer() const {
    if (llama_vocab_type(vocab()) == LLAMA_VOCAB_TYPE_NONE) {
        throw model_error(path + ": tokenizer.ggml.model is 'no_vocab'; the model takes tokens, not text");
    }
}

// Many pre-tokenizers are regular expressions of the standard library, which recurse for each character of a match:
// some three hundred bytes of stack.
static constexpr size_t stack_of_a_byte = 1024;
static constexpr size_t short_text      = 4096;  // bytes, for which any stack has room

std::vector<llama_token> model::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    check_tokenizer();
    if (text.size() > std::numeric_limits<int32_t>::max() - 2) {
        throw std::invalid_argument("the text has " + std::to_string(text.size()) +
                                    " bytes, at most 2 GiB can be taken");
    }
    std::vector<llama_token> tokens(text.size() + 2);
    int32_t                  n   = 0;
    const auto               run = [&] {
        const abort_guard guard;
        const auto        fill = [&] {
            n = llama_tokenize(vocab(), text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                                    static_cast<int32_t>(tokens.size()), add_special, parse_special);
        };
        fill();
        if (n < 0) {
            tokens.resize(static_cast<size_t>(-static_cast<int64_t>(n)));
            fill();
        }
    };
    if (text.size() <= short_text) {
        run();
    } else {
        with_stack(text.size() * stack_of_a_byte, run);
    }
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

// Calls a function of llama.cpp that writes text and answers with the negative of the size it lacks.
template <typename F>
static std::string text_of(F && write) {
    std::string text(32, '\0');
    int32_t     n = write(text.data(), static_cast<int32_t>(text.size()));
    if (n < 0) {
        text.resize(static_cast<size_t>(-static_cast<int64_t>(n)));
        n = write(text.data(), static_cast<int32_t>(text.size()));
    }
    text.resize(static_cast<size_t>(n));
    return text;
}

std::string model::detokenize(const std::vector<llama_token> & tokens, bool special) const {
    const abort_guard guard;
    check_tokenizer();
    for (const llama_token t : tokens) {
        check_token(t);
    }
    return text_of([&](char * text, int32_t size) {
        return llama_detokenize(vocab(), tokens.data(), static_cast<int32_t>(tokens.size()), text, size, false,
                                special);
    });
}

std::string model::piece(llama_token token, bool special) const {
    const abort_guard guard;
    check_tokenizer();
    check_token(token);
    return text_of(
        [&](char * text, int32_t size) { return llama_token_to_piece(vocab(), token, text, size, 0, special); });
}

std::string model::tensor_bytes(const std::string & name) const {
    const ggml_tensor * tensor = get()->get_tensor(name.c_str());
    if (!tensor) {
        throw std::out_of_range(path + ": no tensor " + name);
    }
    if (!tensor->buffer->iface.get_tensor) {
        throw std::runtime_error(path + ": tensor " + name + " lies in an order of the CPU's own (" +
                                 ggml_backend_buffer_name(tensor->buffer) + "); read it from the file");
    }
    std::string bytes(ggml_nbytes(tensor), '\0');
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

static py::dict metadata(const model & m) {
    py::dict out;
    for (int32_t i = 0; i < llama_model_meta_count(m.get()); ++i) {
        const auto read = [&](auto get) {
            std::string   text(256, '\0');
            const int32_t n = get(m.get(), i, text.data(), text.size());
            if (n >= static_cast<int32_t>(text.size())) {
                text.resize(static_cast<size_t>(n) + 1);
                get(m.get(), i, text.data(), text.size());
            }
            text.resize(static_cast<size_t>(std::max(n, 0)));
            return py::reinterpret_steal<py::object>(
                PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
        };
        out[read(llama_model_meta_key_by_index)] = read(llama_model_meta_val_str_by_index);
    }
    return out;
}

static std::string description(const model & m) {
    char text[256];
    llama_model_desc(m.get(), text, sizeof(text));
    return text;
}

void register_model(py::module_ & m) {
    py::class_<model, std::shared_ptr<model>>(m, "Model", py::is_final(), R"doc(
A model loaded from a GGUF file.

Raises ModelError when the file is missing, truncated, no GGUF, or of an unknown architecture.
)doc")
        .def(py::init<const std::string &, int32_t, bool, bool>(), py::arg("path"), py::kw_only(),
             py::arg("n_gpu_layers") = 0, py::arg("use_mmap") = true, py::arg("use_hugepages") = false,
             py::call_guard<gil_released>())
        .def("close", &model::close,
             "Frees the weights; later calls raise ModelError. Raises RuntimeError while there are contexts or "
             "adapters.")
        .def_readonly("path", &model::path)
        .def_property_readonly("arch",
                               [](const model & self) {
                                   char          text[128];
                                   const int32_t n =
                                       llama_model_meta_val_str(self.get(), "general.architecture", text, sizeof(text));
                                   return std::string(n > 0 ? text : "");
                               })
        .def_property_readonly("description", description)
        .def_property_readonly("n_vocab", [](const model & self) { return llama_vocab_n_tokens(self.vocab()); })
        .def_property_readonly("n_embd", [](const model & self) { return llama_model_n_embd(self.get()); })
        .def_property_readonly("n_layer", [](const model & self) { return llama_model_n_layer(self.get()); })
        .def_property_readonly("n_ctx_train", [](const model & self) { return llama_model_n_ctx_train(self.get()); })
        .def_property_readonly("n_swa", [](const model & self) { return llama_model_n_swa(self.get()); })
        .def_property_readonly("n_params", [](const model & self) { return llama_model_n_params(self.get()); })
        .def_property_readonly("n_bytes", [](const model & self) { return llama_model_size(self.get()); })
        .def_property_readonly("huge_page_bytes", [](const model & self) { return huge_page_bytes(*self.get()); })
        .def_property_readonly("metadata", metadata)
        .def_property_readonly("layout_hash", [](const model & self) { return layout_hash(*self.get()); })
        .def(
            "tensor_bytes",
            [](const model & self, const std::string & name) { return py::bytes(self.tensor_bytes(name)); },
            py::arg("name"))
        .def_property_readonly("chat_template",
                               [](const model & self) -> std::optional<std::string> {
                                   const char * text = llama_model_chat_template(self.get(), nullptr);
                                   return text ? std::optional<std::string>(text) : std::nullopt;
                               })
        .def_property_readonly("bos_token", [](const model & self) { return llama_vocab_bos(self.vocab()); })
        .def_property_readonly("eos_token", [](const model & self) { return llama_vocab_eos(self.vocab()); })
        .def_property_readonly("add_bos", [](const model & self) { return llama_vocab_get_add_bos(self.vocab()); })
        .def(
            "is_eog",
            [](const model & self, llama_token token) {
                self.check_token(token);
                return llama_vocab_is_eog(self.vocab(), token);
            },
            py::arg("token"))
        .def(
            "tokenize",
            [](const std::shared_ptr<model> & self, const py::bytes & text, bool add_special, bool parse_special) {
                const std::string  copy = text;
                const model::use   weights(self);
                const gil_released release;
                return self->tokenize(copy, add_special, parse_special);
            },
            py::arg("text"), py::arg("add_special"), py::arg("parse_special"))
        .def(
            "detokenize",
            [](const model & self, const std::vector<llama_token> & tokens, bool special) {
                return py::bytes(self.detokenize(tokens, special));
            },
            py::arg("tokens"), py::arg("special"))
        .def(
            "token_to_piece",
            [](const model & self, llama_token token, bool special) { return py::bytes(self.piece(token, special)); },
            py::arg("token"), py::arg("special"));
}

}  // namespace loradrop::bindings
