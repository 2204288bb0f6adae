// What the logits of one row say: the token chosen, its chance, the likeliest, all as doubles.
#pragma once
#include <stdint.h>

#include <vector>

#include "interface.h"
#include "kernels.h"

// One key for each (seed, position): neighbours get unrelated noise.
uint64_t noise_key(uint64_t seed, int position);
// Standard Gumbel noise of a token, a function of (key, token) alone.
double gumbel(uint64_t key, int token);

// One row of logits after penalties and bans, with its summary.
class Reading {
   public:
    // Changes `logits` as the read asks; they are padded with -inf to a multiple of 16.
    Reading(const Kernels& kernels, float* logits, const Vocabulary& vocabulary, int mask_token, const Pass& pass,
            const Read& read);

    Answer answer() const;
    double logprob(int32_t token) const;
    // Each row's probability in its place.
    void weigh(float* probabilities) const;
    // Lists up to `count` tokens that may be chosen, likeliest first, of equals the lowest; returns how many.
    int list_likeliest(int count, int32_t* tokens, double* logprobs) const;

   private:
    // From here on tokens are rows of the head.
    std::vector<int32_t> likeliest(int count) const;
    float limit_of(int count) const;
    int sample() const;
    int sample_among(const std::vector<int32_t>& kept) const;
    int sample_all() const;
    int invert(std::vector<int32_t> kept) const;
    std::vector<int32_t> not_below(float limit) const;
    void sort(std::vector<int32_t>& tokens, int count) const;
    std::vector<int32_t> nucleus(std::vector<int32_t> kept, bool all) const;

    const Kernels& kernels_;
    float* logits_;
    const Vocabulary vocabulary_;
    int padded_;
    const Read& read_;
    const uint64_t key_;
    Summary summary_;
    double total_;
};
