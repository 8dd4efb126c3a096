#include "loradrop/draft_length.h"

#include "bindings.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace loradrop::bindings {

void register_draft_length(py::module_ & m) {
    py::class_<draft_length>(m, "DraftLength", py::is_final(), R"doc(
How many tokens a round of refresh "verify" drafts with adapt_k, by what it is told: a context's own keeps itself up to
date, this is for trying the rule on its own. Times are in any one unit.
)doc")
        .def(py::init([](uint32_t k) {
                 if (k < 1) {
                     throw std::invalid_argument("k = 0, expected 1 or more");
                 }
                 return draft_length(k);
             }),
             py::arg("k"), "k: drafts of a round at most.")
        .def("full_took", &draft_length::full_took, py::arg("seconds"), "A full step of one token.")
        .def("lora_took", &draft_length::lora_took, py::arg("seconds"), "A LoRA step.")
        .def("check_took", &draft_length::check_took, py::arg("n_tokens"), py::arg("seconds"),
             "A full step of 2 to k + 1 tokens.")
        .def("begin_text", &draft_length::begin_text, "Another text begins.")
        .def("draw_drafts", &draft_length::draw_drafts, py::arg("drawn"),
             "Whether drafts from now on are drawn as a sampler draws.")
        .def("begins", &draft_length::begins, "Whether a round begins with the next token.")
        .def("goes_on", &draft_length::goes_on, py::arg("margins"),
             "Whether to draft one more. margins: by how much the logit of each draft so far was above the next best.")
        .def("came_to", &draft_length::came_to, py::arg("margin"), py::arg("accepted"),
             "The client has come to a draft, and has gone on with it or not.");
}

}  // namespace loradrop::bindings
