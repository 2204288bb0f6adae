// A loaded model with its key/value pool, its threads and its adapters.
#pragma once
#include <stdlib.h>

#include <map>
#include <memory>
#include <vector>

#include "interface.h"
#include "kernels.h"
#include "team.h"

// Half-precision keys and values of num_slots slots. Memory is used as the slots are: calloc's zeros come from
// the system untouched.
class Pool {
   public:
    Pool(const Model& model, int num_slots);
    ~Pool() { free(keys_), free(values_); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // [tile of 16 slots][head_dim][16]: scores of 16 slots are computed side by side.
    uint16_t* keys(int layer, int head) { return keys_ + part(layer, head); }
    // [slot][head_dim]
    uint16_t* values(int layer, int head) { return values_ + part(layer, head); }
    void store_key(int layer, int head, int slot, const uint16_t* key);
    void store_key(int layer, int head, int slot, const float* key, const Kernels& kernels);
    // Copies (from, to) pairs of slots, all at once.
    void move(const int32_t* pairs, int count);

   private:
    struct Sizes {
        int num_heads, head_dim;
        size_t start;  // of the layer in `keys_` and `values_`
    };
    void move(int layer, int head, const int32_t* pairs, int count);
    size_t part(int layer, int head) const {
        const Sizes& sizes = layers_[layer];
        return sizes.start + num_slots_ * head * sizes.head_dim;
    }

    const size_t num_slots_;  // rounded up to whole tiles
    std::vector<Sizes> layers_;
    uint16_t *keys_, *values_;
};

struct Session {
    Session(const Model& given, int num_pages, int page_size, int threads, const Kernels* kernels);

    Model model;
    std::vector<Layer> layers, drafter_layers;
    const Kernels* kernels;
    int page_size;
    int threads;
    Pool pool;
    std::unique_ptr<Team> team;
    std::map<int, std::vector<LowRank>> adapters;
    std::vector<float> logits;  // of one batch of reads, kept from pass to pass

    Stack stack(bool drafting) const;

    // A norm of a row of hidden states, [hidden_size]; weight and shift may be null.
    void normalize(const float* x, const float* weight, const float* shift, float* y) const;

    // The threads; made anew in a fork, which has none of its parent's.
    Team& workers();
};

void run_pass(Session& session, const Pass& pass, Answers& answers);
