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
    // Copies (from, to) pairs of slots, all at once.
    void move(const int32_t* pairs, int count);

   private:
    size_t part(int layer, int head) const { return ((size_t)layer * num_heads_ + head) * part_; }

    const int num_layers_, num_heads_, head_dim_;
    const size_t part_;
    uint16_t *keys_, *values_;
};

struct Session {
    Session(const Model& given, int num_pages, int page_size, int threads, const Kernels* kernels);

    Model model;
    std::vector<Layer> layers;
    const Kernels* kernels;
    int page_size;
    int threads;
    Pool pool;
    std::unique_ptr<Team> team;
    std::map<int, std::vector<LowRank>> adapters;
    std::vector<float> logits;  // of one batch of reads, kept from pass to pass

    // The threads; made anew in a fork, which has none of its parent's.
    Team& workers();
};

void run_pass(Session& session, const Pass& pass, Answers& answers);
