#include "loradrop/corrector.h"

#include "bindings.h"
#include "errors.h"
#include "gil.h"
#include "model.h"

#include "loradrop/drop_plan.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace loradrop::bindings {

void register_corrector(py::module_ & m) {
    // pybind11 holds no pointers to const; the class is bound without any way to change it
    using held      = std::shared_ptr<corrector>;
    const auto hold = [](std::shared_ptr<const corrector> c) {
        return std::const_pointer_cast<corrector>(std::move(c));
    };

    py::class_<corrector, held>(m, "Corrector", py::is_final(), R"doc(
What replaces the droppable layers of a model in a LoRA step.
)doc")
        .def_static(
            "load",
            [hold](const std::string & path, const model & base) -> held {
                const abort_guard guard;
                return hold(corrector::load(path, *base.get()));
            },
            py::arg("path"), py::arg("model"), py::call_guard<gil_released>(),
            "Reads and checks the corrector in a GGUF file: a model's own, or a sidecar. None when the file has none. "
            "Raises CorrectorError when there is one that cannot be used with the model.")
        .def_static(
            "none",
            [hold](const model & base, std::vector<int32_t> layers) {
                return hold(corrector::none(*base.get(), std::move(layers)));
            },
            py::arg("model"), py::arg("layers") = std::vector<int32_t>{},
            "Stands for a corrector that is missing: what dropped layers would add is left out. layers: those that can "
            "drop, in order; none stands for all but the first three and the last, from the middle outwards. Raises "
            "ValueError for a layer that cannot drop, or one that comes twice.")
        .def_property_readonly("reuse", [](const corrector & self) { return reuse_rule_name(self.rule); })
        .def_readonly("rank", &corrector::rank)
        .def_readonly("alpha", &corrector::alpha)
        .def_readonly("layers", &corrector::layers)
        .def_readonly("segments", &corrector::segments)
        .def_readonly("rho", &corrector::rho)
        .def_readonly("k", &corrector::k)
        .def_readonly("refresh", &corrector::refresh)
        .def_readonly("quality", &corrector::quality)
        .def_readonly("path", &corrector::path)
        .def_property_readonly("n_bytes", &corrector::n_bytes)
        .def_property_readonly("is_none", &corrector::is_none)
        .def(
            "dropped_layers",
            [](const corrector & self, double rho, int32_t n_layer) {
                std::vector<int32_t> layers;
                for (const drop_run & run : plan_runs(self, rho, n_layer)) {
                    for (int32_t il = run.first; il <= run.last; ++il) {
                        layers.push_back(il);
                    }
                }
                return layers;
            },
            py::arg("rho"), py::arg("n_layer"),
            "The layers that drop at rho, ascending. Raises ValueError when rho asks for none or for too many.");
}

}  // namespace loradrop::bindings
