// The library's face: what one pass is asked for and what it answers, in plain numbers. `native/library.py`
// mirrors these structures; change LAYOUT_VERSION with either.
#pragma once
#include <stdint.h>

#include "model.h"

#if defined(_WIN32)
#define VERMILION_API extern "C" __declspec(dllexport)
#else
#define VERMILION_API extern "C" __attribute__((visibility("default")))
#endif

constexpr int kLayoutVersion = 7;

// Rows at consecutive positions that see by the same rule: `decoding/passes.py`, Segment.
struct Segment {
    int32_t request, count, start, slot, sees, span, noisy;
    int32_t adapter;  // its number, or -1
    int32_t first_also, num_also;
};

// A token's logit: divided by `repetition` where positive, multiplied where negative; then `add`.
struct Change {
    int32_t token;
    float repetition, add;
};

// One row whose logits are wanted: `decoding/jobs.py`, Wanted.
struct Read {
    double temperature, top_p, min_p;
    double divisor;   // of the logits, before what may not be chosen is left out
    uint64_t seed;    // with the position, the key of the sampling noise
    int64_t allowed;  // byte offset of its bits in `allowed`; -1: all tokens
    int32_t row;      // counted over all segments in order
    int32_t position, top_k, top, entropy;
    int32_t first_target, num_targets, first_change, num_changes;
    int32_t after;    // of a draft: the read that gives the token before it, -1: none, -3: its row stands on it; -2: no draft
    int32_t choices;  // of a draft: how many of its likeliest tokens to weigh
    int32_t may_mask;  // whether the mask token may be chosen
    int32_t draw;      // a sample is the distribution's inverse at a number of (seed, position, draw); -1: by Gumbel noise
    int32_t signalled;  // whether the mean embedding under its distribution is wanted
};

struct Pass {
    int32_t num_segments, num_requests, num_moves, num_reads;
    int32_t num_taps;
    int32_t drafting;  // whether the drafter runs instead of the base
    const Segment* segments;
    const int32_t* ids;      // of all rows in order
    const uint8_t* masked;   // rows that carry the mask embedding
    const int32_t* also;
    const int32_t* pages;
    const int32_t* first_page;  // [num_requests + 1]
    const int32_t* moves;       // pool slots, (from, to) each
    const Read* reads;
    const int32_t* targets;
    const Change* changes;
    const uint8_t* allowed;
    const float* signals;  // [rows as the segments list them, hidden_size], of noisy ones; null: all zero
    const int32_t* taps;   // layers whose inputs are wanted; the number of layers: what the last norm takes
};

struct Answer {
    double logprob, entropy;
    int32_t token, num_top;
};

// One draft behind one token before it.
struct Given {
    int32_t read, before, first, count;  // its choices in `given_tokens`
};

// Room for the answers; the pointers may be null where nothing of the kind is asked for.
struct Answers {
    Answer* answers;         // [num_reads]
    double* targets;         // one for each target
    int32_t* top_tokens;     // `top` places for each read
    double* top_logprobs;
    Given* given;            // for each draft, as many as tokens may stand before it
    int32_t* given_tokens;   // `choices` places for each of these
    double* given_logprobs;
    float* tapped;           // [rows as the segments list them, num_taps, hidden_size]
    float* logits;           // [num_reads, vocab_size], unchanged by penalties or bans; null: not wanted
    float* signals;          // [num_reads, hidden_size], of those that are signalled
    int32_t num_given;
};

struct Session;

VERMILION_API int vermilion_layout_version();
VERMILION_API const char* vermilion_instruction_set(const char* wanted);
VERMILION_API Session* vermilion_open(const Model* model, int32_t num_pages, int32_t page_size, int32_t threads,
                                      const char* instruction_set);
VERMILION_API void vermilion_close(Session* session);
VERMILION_API void vermilion_run(Session* session, const Pass* pass, Answers* answers);
// `layers`: four for each layer of the model (qkv, output, gate_up, down). Null forgets the adapter.
VERMILION_API void vermilion_adapt(Session* session, int32_t number, const LowRank* layers);
VERMILION_API int64_t vermilion_packed_size(int64_t outputs, int32_t inputs, int32_t bits);
// `kind`: a GGUF type (2 Q4_0, 3 Q4_1, 8 Q8_0), or 0 for float32. Returns 0, or -1 for another kind.
VERMILION_API int vermilion_pack(const void* source, int32_t kind, int64_t outputs, int32_t inputs, int32_t bits,
                                 uint8_t* tiles);
// Sampling noise of one token, for tests.
VERMILION_API double vermilion_noise(uint64_t seed, int32_t position, int32_t token);
