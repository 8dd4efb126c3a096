#include "loradrop/grammar_check.h"

#include "llama-grammar.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace loradrop {

static constexpr int    most_parentheses = 500;      // within each other
static constexpr int    most_deep        = 1000;     // rules that begin with each other
static constexpr size_t most_elements    = 1 << 20;  // that a repetition may make

void check_grammar_text(const char * text) {
    int depth = 0;
    for (const char * p = text; *p; ++p) {
        if (*p == '#') {
            while (p[1] && p[1] != '\n' && p[1] != '\r') {
                ++p;
            }
        } else if (*p == '"' || *p == '[') {
            const char end = *p == '"' ? '"' : ']';
            while (p[1] && p[1] != end) {
                p += p[1] == '\\' && p[2] ? 2 : 1;
            }
            p += p[1] ? 1 : 0;
        } else if (*p == '(') {
            if (++depth > most_parentheses) {
                throw std::runtime_error("more than " + std::to_string(most_parentheses) +
                                         " parentheses within each other");
            }
        } else if (*p == ')') {
            --depth;
        }
    }
}

void check_grammar_repetition(uint64_t n_elements, uint64_t min_times, uint64_t max_times) {
    if (max_times < min_times) {
        throw std::runtime_error("a repetition of at least " + std::to_string(min_times) + " and at most " +
                                 std::to_string(max_times) + " times");
    }
    const uint64_t times = max_times == UINT64_MAX ? min_times + 1 : max_times;
    if (n_elements > most_elements / std::max<uint64_t>(times, 1)) {
        throw std::runtime_error("a repetition of " + std::to_string(n_elements) + " elements, " +
                                 std::to_string(times) + " times, is too long");
    }
}

namespace {

using rule_ids = std::vector<uint32_t>;

// An alternative of a rule, up to the first element that takes a character or token.
struct beginning {
    uint32_t rule;
    rule_ids refs;
    bool     only_refs = true;  // nothing else is in the alternative
};

}  // namespace

static std::vector<beginning> beginnings(const llama_grammar_rules & rules) {
    std::vector<beginning> out;
    for (uint32_t id = 0; id < rules.size(); ++id) {
        beginning one{id, {}};
        for (const llama_grammar_element & e : rules[id]) {
            if (e.type == LLAMA_GRETYPE_ALT || e.type == LLAMA_GRETYPE_END) {
                out.push_back(std::move(one));
                one = {id, {}};
            } else if (e.type == LLAMA_GRETYPE_RULE_REF) {
                if (one.only_refs) {
                    one.refs.push_back(e.value);
                }
            } else {
                one.only_refs = false;
            }
        }
    }
    return out;
}

// Which rules may be empty: those with an alternative all of whose rules may be.
static std::vector<bool> empty_rules(const std::vector<beginning> & all, size_t n_rules) {
    std::vector<std::vector<size_t>> used_in(n_rules);
    std::vector<size_t>              missing(all.size());
    std::vector<bool>                may_be_empty(n_rules);
    rule_ids                         todo;
    const auto                       found = [&](uint32_t rule) {
        if (!may_be_empty[rule]) {
            may_be_empty[rule] = true;
            todo.push_back(rule);
        }
    };
    for (size_t i = 0; i < all.size(); ++i) {
        missing[i] = all[i].refs.size();
        for (const uint32_t ref : all[i].refs) {
            used_in[ref].push_back(i);
        }
        if (all[i].only_refs && missing[i] == 0) {
            found(all[i].rule);
        }
    }
    while (!todo.empty()) {
        const uint32_t rule = todo.back();
        todo.pop_back();
        for (const size_t i : used_in[rule]) {
            if (--missing[i] == 0 && all[i].only_refs) {
                found(all[i].rule);
            }
        }
    }
    return may_be_empty;
}

void check_grammar_rules(const llama_grammar_rules & rules) {
    const std::vector<beginning> all          = beginnings(rules);
    const std::vector<bool>      may_be_empty = empty_rules(all, rules.size());

    std::vector<rule_ids> first(rules.size());  // the rules that a rule may begin with
    std::vector<size_t>   n_users(rules.size());
    for (const beginning & one : all) {
        for (const uint32_t ref : one.refs) {
            first[one.rule].push_back(ref);
            ++n_users[ref];
            if (!may_be_empty[ref]) {
                break;
            }
        }
    }

    // from the rules that none begins with to what they begin with: what is never reached lies on a circle
    std::vector<int> depth(rules.size());
    rule_ids         todo;
    for (uint32_t id = 0; id < rules.size(); ++id) {
        if (n_users[id] == 0) {
            todo.push_back(id);
        }
    }
    size_t n_done = 0;
    while (!todo.empty()) {
        const uint32_t id = todo.back();
        todo.pop_back();
        ++n_done;
        for (const uint32_t ref : first[id]) {
            depth[ref] = std::max(depth[ref], depth[id] + 1);
            if (depth[ref] > most_deep) {
                throw std::runtime_error("rules that begin with each other, more than " + std::to_string(most_deep) +
                                         " deep");
            }
            if (--n_users[ref] == 0) {
                todo.push_back(ref);
            }
        }
    }
    if (n_done < rules.size()) {
        throw std::runtime_error("left recursion: a rule begins with itself");
    }
}

}  // namespace loradrop
