// A grammar that the sampled text follows.
#pragma once

#include "candidates.h"
#include "model.h"
#include "utf8_state.h"

#include <memory>
#include <string>

namespace loradrop::bindings {

// llama.cpp's, and that the text is UTF-8: of a character's bytes llama.cpp takes longer forms than the shortest too.
class grammar {
  public:
    // Throws std::invalid_argument when the text is no GBNF grammar with a rule "root".
    grammar(std::shared_ptr<model> base, const std::string & text);

    // Whether it allows a token next.
    bool allows(llama_token token) const;

    // Gives tokens that it does not allow the logit of minus infinity.
    void restrict(candidates & tokens) const;

    void accept(llama_token token);
    void reset();

  private:
    bool continues_text(llama_token token) const;

    const std::shared_ptr<model> base;
    llama_sampler_ptr            rules;
    utf8_state                   text;
};

}  // namespace loradrop::bindings
