#include "bindings.h"
#include "candidates.h"
#include "context.h"
#include "errors.h"
#include "gil.h"
#include "grammar.h"
#include "model.h"

#include "loradrop/engine.h"

#include "llama-context.h"
#include "llama-cpp.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
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
    float                        tolerance;
    std::optional<uint32_t>      seed;
    std::optional<std::string>   grammar;
    std::map<llama_token, float> logit_bias;
};

// llama.cpp's sampler chain, in the order of its own command line tools. As there, a grammar is asked about the token
// that has been sampled, and restricts the others only where it does not allow that one.
class sampler {
  public:
    sampler(std::shared_ptr<model> base, const sampling & s) :
        base(std::move(base)),
        seed(s.seed ? *s.seed : std::random_device{}()),
        is_plain(s.temperature <= 0.0f && s.logit_bias.empty() && s.repeat_penalty == 1.0f &&
                 s.frequency_penalty == 0.0f && s.presence_penalty == 0.0f),
        log_tolerance(std::log(s.tolerance)),
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
            rules = std::make_unique<grammar>(this->base, *s.grammar);
        }
        add(llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), s.repeat_last_n, s.repeat_penalty,
                                         s.frequency_penalty, s.presence_penalty));
        n_shaping = llama_sampler_chain_n(chain.get());
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

    // Throws std::invalid_argument.
    void check_model(const context & ctx) const {
        if (ctx.base != base) {
            throw std::invalid_argument("the sampler was made for " + base->path + ", the context for " +
                                        ctx.base->path + "; make a sampler for the context's model");
        }
    }

    llama_token sample(context & ctx, int32_t i) {
        check_model(ctx);
        const float *      logits = ctx.logits(i);
        const auto         draft  = ctx.engine() ? ctx.engine()->drafted(0) : std::nullopt;
        const context::use in_use(ctx);
        const gil_released release;
        const abort_guard  guard;
        llama_token        token = draw(logits);  // before the draft is looked at, so that each token draws once
        if (draft && *draft != token && log_tolerance < 0.0f && is_tolerable(*draft, logits)) {
            token = *draft;
        }
        take(token);
        return token;
    }

    void accept(llama_token token) {
        base->check_token(token);
        const abort_guard guard;
        take(token);
    }

    void reset() {
        llama_sampler_reset(chain.get());
        if (rules) {
            rules->reset();
        }
    }

    // The samplers that come after this one's choices so far, but for the grammar, which takes too long for a draft.
    llama_sampler_ptr clone() const { return llama_sampler_ptr(llama_sampler_clone(chain.get())); }

    const std::shared_ptr<model> base;
    const uint32_t               seed;
    const bool                   is_plain;  // takes the most probable token that the grammar allows

  private:
    llama_token draw(const float * logits) const {
        candidates own(logits, n_vocab());
        llama_sampler_apply(chain.get(), &own.view);
        if (!rules || rules->allows(own.selected())) {
            return own.selected();
        }
        candidates allowed(logits, n_vocab());
        rules->restrict(allowed);
        llama_sampler_apply(chain.get(), &allowed.view);
        return allowed.selected();
    }

    void take(llama_token token) {
        llama_sampler_accept(chain.get(), token);
        if (rules) {
            rules->accept(token);
        }
    }

    void add(llama_sampler * s) { llama_sampler_chain_add(chain.get(), s); }

    size_t n_vocab() const { return static_cast<size_t>(llama_vocab_n_tokens(base->vocab())); }

    // Whether a token has enough of the best one's probability, by bias, grammar and penalties.
    bool is_tolerable(llama_token token, const float * logits) const {
        candidates shaped(logits, n_vocab());
        if (rules) {
            rules->restrict(shaped);
        }
        for (int32_t i = 0; i < n_shaping; ++i) {
            llama_sampler_apply(llama_sampler_chain_get(chain.get(), i), &shaped.view);
        }
        float best = -std::numeric_limits<float>::infinity();
        float own  = best;
        for (size_t i = 0; i < shaped.view.size; ++i) {
            const llama_token_data & one = shaped.view.data[i];
            best                         = std::max(best, one.logit);
            own                          = one.id == token ? one.logit : own;
        }
        return std::isfinite(own) && own - best >= log_tolerance;
    }

    const float              log_tolerance;
    llama_sampler_ptr        chain;
    std::unique_ptr<grammar> rules;
    int32_t                  n_shaping = 0;  // samplers of the chain, from the first, that come before any is left out
};

// Draws a draft as the sampler would draw the token: with the same random numbers, so that where both distributions are
// alike the tokens are the same.
class sampled_drafts : public draft_picker {
  public:
    explicit sampled_drafts(std::shared_ptr<const sampler> of) : of(std::move(of)) {}

    void begin_round() override { chain = of->clone(); }

    int32_t pick(const float * logits, size_t n) override {
        candidates own(logits, n);
        llama_sampler_apply(chain.get(), &own.view);
        const llama_token token = own.selected();
        llama_sampler_accept(chain.get(), token);
        return token;
    }

  private:
    std::shared_ptr<const sampler> of;
    llama_sampler_ptr              chain;
};

}  // namespace

void register_sampler(py::module_ & m) {
    py::class_<sampler, std::shared_ptr<sampler>>(m, "Sampler", py::is_final(), R"doc(
llama.cpp's sampler chain: logit bias, grammar, penalties, top-k, typical, top-p, min-p, temperature.

temperature <= 0 takes the most likely token. seed None draws one. With a tolerance below 1 a token that the context has
drafted (Context.drafted, of sequence 0) is taken in place of another if it has at least that share of the probability
of the most probable one, after bias, grammar and penalties. Raises ValueError for a grammar that does not parse
and IndexError for a biased token outside of the vocabulary.
)doc")
        .def(py::init([](std::shared_ptr<model> base, float temperature, int32_t top_k, float top_p, float min_p,
                         float typical_p, float repeat_penalty, float frequency_penalty, float presence_penalty,
                         int32_t repeat_last_n, float tolerance, std::optional<uint32_t> seed,
                         std::optional<std::string> grammar, std::optional<std::map<llama_token, float>> logit_bias) {
                 if (!(tolerance > 0.0f && tolerance <= 1.0f)) {
                     throw std::invalid_argument("tolerance = " + std::to_string(tolerance) +
                                                 ", expected above 0 and at most 1");
                 }
                 const gil_released release;
                 return std::make_shared<sampler>(
                     std::move(base),
                     sampling{temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty,
                              presence_penalty, repeat_last_n, tolerance, seed, std::move(grammar),
                              logit_bias ? *logit_bias : std::map<llama_token, float>{}});
             }),
             py::arg("model"), py::kw_only(), py::arg("temperature") = 0.8f, py::arg("top_k") = 40,
             py::arg("top_p") = 0.95f, py::arg("min_p") = 0.05f, py::arg("typical_p") = 1.0f,
             py::arg("repeat_penalty") = 1.0f, py::arg("frequency_penalty") = 0.0f, py::arg("presence_penalty") = 0.0f,
             py::arg("repeat_last_n") = 64, py::arg("tolerance") = 1.0f, py::arg("seed") = py::none(),
             py::arg("grammar") = py::none(), py::arg("logit_bias") = py::none())
        .def_readonly("seed", &sampler::seed)
        .def_readonly("is_plain", &sampler::is_plain, "Whether it takes the most probable token that a grammar allows.")
        .def("sample", &sampler::sample, py::arg("context"), py::arg("i") = -1,
             "Draws a token from the logits of output i and accepts it.")
        .def("accept", &sampler::accept, py::arg("token"), "Tells penalties and grammar of a token.")
        .def("reset", &sampler::reset)
        .def(
            "drafts_for",
            [](std::shared_ptr<sampler> self, context & ctx) {
                self->check_model(ctx);
                if (engine * e = engine::of(*ctx.get())) {
                    e->set_picker(std::make_shared<sampled_drafts>(std::move(self)));
                }
            },
            py::arg("context"),
            "From now on a context with refresh 'verify' drafts as this sampler samples, with its random numbers and "
            "all "
            "but its grammar, instead of the most probable tokens. What is sampled stays the same; more drafts are "
            "right "
            "where it does not take the most probable one.");
}

}  // namespace loradrop::bindings
