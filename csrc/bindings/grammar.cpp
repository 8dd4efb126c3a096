#include "grammar.h"

#include "errors.h"
#include "log.h"

#include "llama-vocab.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace loradrop::bindings {

static constexpr size_t most_said = 300;  // bytes of what is wrong; the log quotes the whole grammar

static llama_sampler * parse(const llama_vocab * vocab, const std::string & text) {
    if (text.empty()) {
        throw std::invalid_argument("grammar: it is empty; give a GBNF grammar with a rule 'root', or none");
    }
    if (text.find('\0') != std::string::npos) {
        throw std::invalid_argument("grammar: there is a NUL in it");
    }
    clear_logged_errors();
    const abort_guard guard;
    llama_sampler *   parsed = llama_sampler_init_grammar(vocab, text.c_str(), "root");
    if (!parsed) {
        const std::string why = logged_errors();
        throw std::invalid_argument("grammar: not a GBNF grammar with a rule 'root': " +
                                    (why.size() > most_said ? why.substr(0, most_said) + " ..." : why));
    }
    return parsed;
}

grammar::grammar(std::shared_ptr<model> base_, const std::string & text) :
    base(std::move(base_)), rules(parse(base->vocab(), text)) {
}

bool grammar::continues_text(llama_token token) const {
    return base->vocab()->is_eog(token) || utf8_state(text).take(base->vocab()->token_to_piece(token));
}

bool grammar::allows(llama_token token) const {
    llama_token_data       one  = {token, 0.0f, 0.0f};
    llama_token_data_array view = {&one, 1, -1, false};
    llama_sampler_apply(rules.get(), &view);
    return !std::isinf(one.logit) && continues_text(token);
}

void grammar::restrict(candidates & tokens) const {
    llama_sampler_apply(rules.get(), &tokens.view);
    for (llama_token_data & one : tokens.all) {
        if (!std::isinf(one.logit) && !continues_text(one.id)) {
            one.logit = -std::numeric_limits<float>::infinity();
        }
    }
}

void grammar::accept(llama_token token) {
    llama_sampler_accept(rules.get(), token);
    text.take(base->vocab()->token_to_piece(token));
}

void grammar::reset() {
    llama_sampler_reset(rules.get());
    text = {};
}

}  // namespace loradrop::bindings
