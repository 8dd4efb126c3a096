#include "errors.h"

#include "bindings.h"

#include "loradrop/errors.h"

#include "ggml.h"

#include <cstdio>
#include <thread>

namespace py = pybind11;

namespace loradrop::bindings {

static thread_local bool guarded = false;

abort_guard::abort_guard() : outer(guarded) {
    guarded = true;
}

abort_guard::~abort_guard() {
    guarded = outer;
}

static void on_abort(const char * message) {
    if (guarded) {
        throw engine_abort(message);
    }
    std::fprintf(stderr, "%s\n", message);  // the last words of a process that ends
}

// On a thread of its own, where no exception can be caught.
static void fail_check(const std::string & message) {
    std::thread([&] { GGML_ABORT("%s", message.c_str()); }).join();
}

// An exception class that is also of a built-in kind, so that callers may catch either. Lives as long as the process.
static PyObject * declare(py::module_ & m, const char * name, const py::tuple & bases, const char * doc) {
    const std::string full = std::string("loradrop.") + name;
    PyObject *        type = PyErr_NewExceptionWithDoc(full.c_str(), doc, bases.ptr(), nullptr);
    if (!type) {
        throw py::error_already_set();
    }
    m.attr(name) = py::handle(type);
    return type;
}

// Messages may quote bytes of a damaged file.
static void raise(PyObject * type, const std::string & message) {
    const auto text = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "replace"));
    PyErr_SetObject(type, text.ptr());
}

void register_errors(py::module_ & m) {
    ggml_set_abort_callback(on_abort);
    m.def("_fail_check", fail_check, py::arg("message"), "Fails a check of ggml on a worker thread. For tests.");

    static PyObject * root      = nullptr;
    static PyObject * model     = nullptr;
    static PyObject * corrector = nullptr;
    static PyObject * unsup     = nullptr;
    static PyObject * decode    = nullptr;
    static PyObject * full      = nullptr;
    static PyObject * aborted   = nullptr;

    const py::handle value(PyExc_ValueError);
    const py::handle runtime(PyExc_RuntimeError);
    const py::handle base(PyExc_Exception);

    root      = declare(m, "LoradropError", py::make_tuple(base), "Base of all errors of loradrop.");
    model     = declare(m, "ModelError", py::make_tuple(py::handle(root), value), "A model file that cannot be used.");
    corrector = declare(m, "CorrectorError", py::make_tuple(py::handle(root), value),
                        "A corrector that is missing or cannot be used.");
    unsup     = declare(m, "UnsupportedError", py::make_tuple(py::handle(root), value),
                        "A model that LoRA-Drop cannot serve; it runs with rho = 0.");
    decode    = declare(m, "DecodeError", py::make_tuple(py::handle(root), runtime), "A decode that failed.");
    full    = declare(m, "ContextFullError", py::make_tuple(py::handle(decode)), "No room in the context for a batch.");
    aborted = declare(m, "DecodeAborted", py::make_tuple(py::handle(decode)), "A decode that was asked to stop.");

    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) {
                std::rethrow_exception(p);
            }
        } catch (const model_error & e) {
            raise(model, e.what());
        } catch (const corrector_error & e) {
            raise(corrector, e.what());
        } catch (const unsupported_error & e) {
            raise(unsup, e.what());
        } catch (const context_full_error & e) {
            raise(full, e.what());
        } catch (const decode_aborted & e) {
            raise(aborted, e.what());
        } catch (const decode_error & e) {
            raise(decode, e.what());
        } catch (const engine_abort & e) {
            raise(root, std::string("a check inside the engine failed: ") + e.what());
        } catch (const std::invalid_argument & e) {
            raise(PyExc_ValueError, e.what());  // as pybind11 does, but for the bytes
        }
    });
}

}  // namespace loradrop::bindings
