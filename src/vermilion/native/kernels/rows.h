// The rows of a pass in the order in which they are computed: clean ones first, those of one adapter together.
#pragma once
#include <stdint.h>

#include <vector>

#include "interface.h"
#include "kernels.h"

// Sees the logical slots [0, prefix) of its request and then the pool slots `tails[first_tail, + num_tail)`.
struct Row {
    int32_t id, position, slot, request, adapter;
    int32_t prefix, first_tail, num_tail;
    int32_t own;  // its own index among what it sees, or the first row's of those that all see each other
    bool masked, noisy;
};

struct AdapterRows {
    int adapter;
    Range rows;
};

struct Rows {
    Rows(const Pass& pass, int page_size);

    std::vector<Row> rows;
    std::vector<int32_t> place;       // of each row as the segments list them
    std::vector<int32_t> tails;       // pool slots
    std::vector<int32_t> slots;       // pool slot of each logical slot, request by request
    std::vector<int32_t> first_slot;  // of each request in `slots`
    std::vector<AdapterRows> adapters;
    int num_clean = 0;
    int longest_prefix = 0, longest_tail = 0;

    int size() const { return (int)rows.size(); }
    const int32_t* slots_of(int request) const { return slots.data() + first_slot[request]; }

   private:
    void expand(const Segment& segment, const int32_t* ids, const uint8_t* masked, const int32_t* also);
    void see(Row& row, const Segment& segment, int own_end, const int32_t* also);
    void sort();
};
