#include "bindings.h"
#include "context.h"
#include "errors.h"
#include "log.h"
#include "model.h"

#include "llama-cpp.h"

#include <pybind11/stl.h>

#include <map>
#include <random>

namespace py = pybind11;

namespace loradrop::bindings {

namespace {

struct sampling {
    float                        temperature;
    int32_t                      top_k;
    float                        top_p;
    float                        min_p;
    float                        typical_p;
    float                        repeat_penalty;
    float                        frequency_penalty;
    float                        presence_penalty;
    int32_t                      repeat_last_n;
    std::optional<uint32_t>      seed;
    std::optional<std::string>   grammar;
    std::map<llama_token, float> logit_bias;
};

// llama.cpp's sampler chain, in the order of its own command line tools.
class sampler {
  public:
    sampler(std::shared_ptr<model> base, const sampling & s) :
        base(std::move(base)),
        seed(s.seed ? *s.seed : std::random_device{}()),
        chain(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
        const llama_vocab * vocab = this->base->vocab();
        if (!s.logit_bias.empty()) {
            std::vector<llama_logit_bias> bias;
            for (const auto & [token, value] : s.logit_bias) {
                this->base->check_token(token);
                bias.push_back({token, value});
            }
            add(llama_sampler_init_logit_bias(llama_vocab_n_tokens(vocab), static_cast<int32_t>(bias.size()),
                                              bias.data()));
        }
        if (s.grammar) {
            clear_logged_errors();
            const abort_guard guard;
            llama_sampler *   g = llama_sampler_init_grammar(vocab, s.grammar->c_str(), "root");
            if (!g) {
                throw std::invalid_argument("grammar: not a GBNF grammar with a rule 'root': " + logged_errors());
            }
            add(g);
        }
        add(llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), s.repeat_last_n, s.repeat_penalty,
                                         s.frequency_penalty, s.presence_penalty));
        if (s.temperature <= 0.0f) {
            add(llama_sampler_init_greedy());
            return;
        }
        add(llama_sampler_init_top_k(s.top_k));
        add(llama_sampler_init_typical(s.typical_p, 1));
        add(llama_sampler_init_top_p(s.top_p, 1));
        add(llama_sampler_init_min_p(s.min_p, 1));
        add(llama_sampler_init_temp(s.temperature));
        add(llama_sampler_init_dist(seed));
    }

    llama_token sample(context & ctx, int32_t i) {
        const abort_guard guard;
        ctx.logits(i);  // an index without logits is an error here, not an abort there
        return llama_sampler_sample(chain.get(), ctx.get(), i);
    }

    void accept(llama_token token) {
        base->check_token(token);
        const abort_guard guard;
        llama_sampler_accept(chain.get(), token);
    }

    void reset() { llama_sampler_reset(chain.get()); }

    const std::shared_ptr<model> base;
    const uint32_t               seed;

  private:
    void add(llama_sampler * s) { llama_sampler_chain_add(chain.get(), s); }

    llama_sampler_ptr chain;
};

}  // namespace

void register_sampler(py::module_ & m) {
    py::class_<sampler>(m, "Sampler", py::is_final(), R"doc(
llama.cpp's sampler chain: logit bias, grammar, penalties, top-k, typical, top-p, min-p, temperature.

temperature <= 0 takes the most likely token. seed None draws one. Raises ValueError for a grammar that does not parse
and IndexError for a biased token outside of the vocabulary.
)doc")
        .def(py::init([](std::shared_ptr<model> base, float temperature, int32_t top_k, float top_p, float min_p,
                         float typical_p, float repeat_penalty, float frequency_penalty, float presence_penalty,
                         int32_t repeat_last_n, std::optional<uint32_t> seed, std::optional<std::string> grammar,
                         std::optional<std::map<llama_token, float>> logit_bias) {
                 return std::make_unique<sampler>(
                     std::move(base),
                     sampling{temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty,
                              presence_penalty, repeat_last_n, seed, std::move(grammar),
                              logit_bias ? *logit_bias : std::map<llama_token, float>{}});
             }),
             py::arg("model"), py::kw_only(), py::arg("temperature") = 0.8f, py::arg("top_k") = 40,
             py::arg("top_p") = 0.95f, py::arg("min_p") = 0.05f, py::arg("typical_p") = 1.0f,
             py::arg("repeat_penalty") = 1.0f, py::arg("frequency_penalty") = 0.0f, py::arg("presence_penalty") = 0.0f,
             py::arg("repeat_last_n") = 64, py::arg("seed") = py::none(), py::arg("grammar") = py::none(),
             py::arg("logit_bias") = py::none())
        .def_readonly("seed", &sampler::seed)
        .def("sample", &sampler::sample, py::arg("context"), py::arg("i") = -1,
             "Draws a token from the logits of output i and accepts it.")
        .def("accept", &sampler::accept, py::arg("token"), "Tells penalties and grammar of a token.")
        .def("reset", &sampler::reset);
}

}  // namespace loradrop::bindings
