// How many tokens a round drafts where that is left to it: on as long as it pays, by what passes have taken and how
// often drafts were right. Knows no clock and no tensors.
//
// A round is a renewal: drafts cost time and may give tokens. More drafts pay when the tokens that they can be
// expected to give take longer to decode otherwise than the drafts do, their rows of the check included. What is not
// known yet is taken for good, so that it becomes known; but no longer than an account allows, on which what rounds
// have won over plain decoding is put, and what they have lost is taken off.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace loradrop {

// The median of the last few values; of fewer than three the least, for what disturbs a pass makes it longer.
class running_median {
  public:
    static constexpr size_t enough = 3;

    void   add(double value);
    bool   empty() const { return n == 0; }
    bool   is_sure() const { return n >= enough; }
    double get() const;

  private:
    std::array<double, 5> last = {};
    size_t                n    = 0;  // ever added
};

// How often something was so, later cases counting more than earlier ones.
class running_rate {
  public:
    // As if it had been so at this rate in a number of cases before.
    running_rate(double rate, double n_cases);

    void   add(bool so);
    double get() const { return n_so / n_all; }

    // As if it had been seen in so many cases at most.
    void weaken(double n_cases);

  private:
    double n_so;
    double n_all;
};

// How often drafts were right, of those that the client has come to.
class hit_rates {
  public:
    hit_rates();

    // margin: by how much the logit of a draft was above the next best
    double of(float margin) const { return by_margin[bucket_of(margin)].get(); }
    double of_all() const { return all.get(); }
    void   add(float margin, bool accepted);
    void   weaken();

  private:
    static size_t bucket_of(float margin);

    std::vector<running_rate> by_margin;
    running_rate              all;
};

class draft_length {
  public:
    // k: drafts of a round at most
    explicit draft_length(uint32_t k);

    // What a pass has taken, in seconds: a full step of one token, a LoRA step, a check of n tokens, 2 to k + 1.
    void full_took(double seconds);
    void lora_took(double seconds) { lora.add(seconds); }
    void check_took(size_t n_tokens, double seconds);

    // Another text begins: how often drafts of it are right has to be seen.
    void begin_text();

    // Whether drafts from now on are drawn as a sampler draws, which are right at other rates than the most probable.
    void draw_drafts(bool drawn) { are_drawn = drawn; }

    // Whether to draft at all after the next token, which is decoded either way.
    bool begins() const;

    // Whether to draft one more. margins: by how much the logit of each draft so far was above the next best.
    bool goes_on(const std::vector<float> & margins) const;

    // The client has come to a draft, and has gone on with it or not.
    void came_to(float margin, bool accepted);

  private:
    const hit_rates & rates() const { return are_drawn ? of_drawn : of_best; }

    double lora_seconds() const;
    double check_seconds(size_t n_tokens) const;
    double round_seconds(size_t n_drafts) const;  // k at most
    double token_seconds() const;
    void   book(double seconds);

    uint32_t                    k;
    running_median              full;
    running_median              lora;
    std::vector<running_median> check;  // by tokens
    hit_rates                   of_best;
    hit_rates                   of_drawn;
    bool                        are_drawn = false;
    bool                        is_cold   = false;  // the first pass after a prompt takes longer than others
    uint32_t                    n_rounds  = 0;      // since the last full step of one token
    double                      account   = 0.0;    // seconds that rounds may lose
};

}  // namespace loradrop
