#include "rows.h"

#include <algorithm>
#include <numeric>

namespace {

// How many of the segment's own rows `row` sees, counted from the first.
int reach(const Segment& segment, int row) {
    if (!segment.span) return segment.count;
    const int block_end = ((segment.start + row) / segment.span + 1) * segment.span;
    return std::min(segment.count, block_end - segment.start);
}

}  // namespace

Rows::Rows(const Pass& pass, int page_size) {
    for (int request = 0; request < pass.num_requests; request++) {
        first_slot.push_back((int32_t)slots.size());
        for (int page = pass.first_page[request]; page < pass.first_page[request + 1]; page++)
            for (int i = 0; i < page_size; i++) slots.push_back(pass.pages[page] * page_size + i);
    }
    int done = 0;
    for (int i = 0; i < pass.num_segments; i++) {
        const Segment& segment = pass.segments[i];
        expand(segment, pass.ids + done, pass.masked + done, pass.also + segment.first_also);
        done += segment.count;
    }
    sort();
    for (const Row& row : rows) {
        num_clean += !row.noisy;
        longest_prefix = std::max(longest_prefix, row.prefix);
        longest_tail = std::max(longest_tail, row.num_tail);
    }
}

void Rows::expand(const Segment& segment, const int32_t* ids, const uint8_t* masked, const int32_t* also) {
    const int32_t* pool = slots_of(segment.request);
    for (int i = 0; i < segment.count; i++) {
        Row row = {};
        row.id = ids[i];
        row.position = segment.start + i;
        row.slot = pool[segment.slot + i];
        row.request = segment.request;
        row.adapter = segment.adapter;
        row.masked = masked[i];
        row.noisy = segment.noisy;
        see(row, segment, segment.slot + reach(segment, i), also);
        rows.push_back(row);
    }
}

// What a row sees in the order of its text. The part that lies in an unbroken run joins the prefix, so that a
// row has the same prefix whether its past was stored by earlier passes or is computed beside it.
void Rows::see(Row& row, const Segment& segment, int own_end, const int32_t* also) {
    const int32_t* pool = slots_of(segment.request);
    row.prefix = segment.sees;
    row.first_tail = (int32_t)tails.size();
    const auto num_tail = [&] { return (int32_t)tails.size() - row.first_tail; };
    const auto add = [&](int slot) {
        if (slot < segment.sees) return;
        if (slot == row.prefix && !num_tail())
            row.prefix++;
        else
            tails.push_back(pool[slot]);
    };
    for (int i = 0; i < segment.num_also; i++) add(also[i]);
    const int own_slot = segment.span ? segment.slot + row.position - segment.start : segment.slot;
    for (int slot = segment.slot; slot < own_end; slot++) {
        // Rows that all see each other see by the window of their first one.
        if (slot == own_slot) row.own = slot < segment.sees ? slot : row.prefix + num_tail();
        add(slot);
    }
    row.num_tail = num_tail();
}

void Rows::sort() {
    std::vector<int32_t> order(rows.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return rows[a].noisy != rows[b].noisy ? rows[b].noisy : rows[a].adapter < rows[b].adapter;
    });
    std::vector<Row> sorted;
    place.resize(rows.size());
    for (const int32_t from : order) {
        place[from] = (int32_t)sorted.size();
        sorted.push_back(rows[from]);
    }
    rows.swap(sorted);
    for (int i = 0; i < size(); i++) {
        if (rows[i].adapter < 0) continue;
        if (!adapters.empty() && adapters.back().adapter == rows[i].adapter &&
            adapters.back().rows.first + adapters.back().rows.count == i)
            adapters.back().rows.count++;
        else
            adapters.push_back({rows[i].adapter, {i, 1}});
    }
}
