// What llama.cpp's parser of grammars takes but cannot do: it would recurse or grow without end.
#pragma once

#include <cstdint>
#include <vector>

struct llama_grammar_element;

namespace loradrop {

// Both throw std::runtime_error that says what is wrong.

// Parentheses within each other, of which the parser calls itself for each.
void check_grammar_text(const char * text);

// Rules that begin with themselves, by way of others or behind what may be empty, and rules that begin with each other
// so many deep that keeping track of them takes too long.
void check_grammar_rules(const std::vector<std::vector<llama_grammar_element>> & rules);

// A piece of so many elements, repeated so often.
void check_grammar_repetition(uint64_t n_elements, uint64_t min_times, uint64_t max_times);

}  // namespace loradrop
