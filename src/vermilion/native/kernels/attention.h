// Softmax attention of a few query heads over half-precision keys and values. Every sum runs over the keys in
// the order of a row's context, whatever page they lie on and whichever rows are computed beside it.
#pragma once
#include "kernels.h"
#include "pointwise.h"

namespace {

// Tiles of 16 keys that are scored side by side. One sum waits for its own last addition: the fewer the queries,
// the more tiles it takes to keep the multipliers busy.
constexpr int tiles_at_once(int queries) {
    const int tiles = kScoreSums / queries;
    return tiles < 1 ? 1 : tiles > 4 ? 4 : tiles;
}

template <int kQueries, int kTiles>
void score_tiles(const float* const* queries, const uint16_t* const* keys, int head_dim, float scale,
                 float* const* scores) {
    Floats sum[kTiles][kQueries];
    for (int t = 0; t < kTiles; t++)
        for (int q = 0; q < kQueries; q++) sum[t][q] = zero();
    for (int d = 0; d < head_dim; d++) {
        Floats key[kTiles];
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; t++) key[t] = load_half(keys[t] + d * 16);
#pragma GCC unroll 8
        for (int q = 0; q < kQueries; q++) {
            const Floats query = splat(queries[q][d]);
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; t++) sum[t][q] = fma(key[t], query, sum[t][q]);
        }
    }
    for (int t = 0; t < kTiles; t++)
        for (int q = 0; q < kQueries; q++) store(scores[q] + 16 * t, mul(sum[t][q], splat(scale)));
}

// The values of slots[first, first + count).
struct Values {
    const uint16_t* pool;  // [slot][head_dim]
    const int32_t* slots;
    int first, count, head_dim;
    int run;  // slots from one multiple of it to the next follow each other in the pool
};

// outputs += weights[0, count) . values, over kVectors vectors of every value.
template <int kQueries, int kVectors>
inline void weigh_vectors(const float* const* weights, const Values& values, float* const* outputs, int first) {
    Floats sum[kQueries][kVectors];
    for (int q = 0; q < kQueries; q++)
        for (int v = 0; v < kVectors; v++) sum[q][v] = load(outputs[q] + first + 16 * v);
    for (int j = 0; j < values.count;) {
        const int at = values.first + j, left = values.run - at % values.run;
        const int end = left < values.count - j ? j + left : values.count;
        const uint16_t* from = values.pool + (long)values.slots[at] * values.head_dim + first;
        for (; j < end; j++, from += values.head_dim) {
            Floats value[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; v++) value[v] = load_half(from + 16 * v);
#pragma GCC unroll 8
            for (int q = 0; q < kQueries; q++) {
                const Floats weight = splat(weights[q][j]);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; v++) sum[q][v] = fma(weight, value[v], sum[q][v]);
            }
        }
    }
    for (int q = 0; q < kQueries; q++)
        for (int v = 0; v < kVectors; v++) store(outputs[q] + first + 16 * v, sum[q][v]);
}

template <int kQueries> void weigh(const float* const* weights, const Values& values, float* const* outputs) {
    constexpr int kVectors = kQueries <= 6 || kValueVectors == 1 ? kValueVectors : kValueVectors / 2;
    int first = 0;
    for (; first + 16 * kVectors <= values.head_dim; first += 16 * kVectors)
        weigh_vectors<kQueries, kVectors>(weights, values, outputs, first);
    for (; first < values.head_dim; first += 16) weigh_vectors<kQueries, 1>(weights, values, outputs, first);
}

using ScoreTiles = void (*)(const float* const*, const uint16_t* const*, int, float, float* const*);
using Weigh = void (*)(const float* const*, const Values&, float* const*);
template <int kQueries> constexpr ScoreTiles kAtOnce = score_tiles<kQueries, tiles_at_once(kQueries)>;
constexpr ScoreTiles kScoreTile[] = {nullptr,           score_tiles<1, 1>, score_tiles<2, 1>,
                                     score_tiles<3, 1>, score_tiles<4, 1>, score_tiles<5, 1>,
                                     score_tiles<6, 1>, score_tiles<7, 1>, score_tiles<8, 1>};
constexpr ScoreTiles kScoreTiles[] = {nullptr,    kAtOnce<1>, kAtOnce<2>, kAtOnce<3>, kAtOnce<4>,
                                      kAtOnce<5>, kAtOnce<6>, kAtOnce<7>, kAtOnce<8>};
constexpr Weigh kWeigh[] = {nullptr, weigh<1>, weigh<2>, weigh<3>, weigh<4>, weigh<5>, weigh<6>, weigh<7>, weigh<8>};

// The keys of up to 16 pool slots as one tile.
const uint16_t* gather_keys(const Attention& a, const int32_t* slots, int count) {
    for (int i = 0; i < count; i++) {
        const uint16_t* key = a.keys + (long)(slots[i] / 16) * 16 * a.head_dim + slots[i] % 16;
        for (int d = 0; d < a.head_dim; d++) a.gathered[d * 16 + i] = key[d * 16];
    }
    for (int i = count; i < 16; i++)
        for (int d = 0; d < a.head_dim; d++) a.gathered[d * 16 + i] = 0;
    return a.gathered;
}

// The queries [first, first + count) of one row, which see the same.
Range row_of(const Attention& a, int first) {
    int count = 1;
    while (first + count < a.num_queries && a.tail[first + count] == a.tail[first] &&
           a.prefix[first + count] == a.prefix[first] && a.num_tail[first + count] == a.num_tail[first])
        count++;
    return {first, count};
}

inline void fetch(const uint16_t* from, int count) {
    for (int i = 0; i < count; i += kLine / 2) __builtin_prefetch(from + i);
}

void score(const Attention& a) {
    int longest = 0;
    for (int q = 0; q < a.num_queries; q++) longest = a.prefix[q] > longest ? a.prefix[q] : longest;
    float* to[kMaxQueries];
    const int most = a.aligned ? tiles_at_once(a.num_queries) : 1;
    for (int at = a.first; at < longest;) {
        const int num_tiles = (longest - at + 15) / 16 < most ? 1 : most;
        const uint16_t* keys[4];
        for (int t = 0; t < num_tiles; t++) {
            const int32_t* slots = a.slots + at + 16 * t;
            keys[t] = a.aligned ? a.keys + (long)*slots * a.head_dim
                                : gather_keys(a, slots, longest - at < 16 ? longest - at : 16);
        }
        for (int q = 0; q < a.num_queries; q++) to[q] = a.scores + (long)q * a.score_stride + at;
        // The keys of the next tiles and the values that go with these come into the cache beside the scores.
        for (int t = 0; t < num_tiles && a.fetched; t++) {
            const int slot = at + 16 * t, ahead = slot + 16 * num_tiles;
            if (ahead < longest) fetch(a.keys + (long)a.slots[ahead] * a.head_dim, 16 * a.head_dim);
            fetch(a.values + (long)a.slots[slot] * a.head_dim, 16 * a.head_dim);
        }
        const ScoreTiles score = (num_tiles > 1 ? kScoreTiles : kScoreTile)[a.num_queries];
        score(a.queries, keys, a.head_dim, a.scale, to);
        at += 16 * num_tiles;
    }
    for (Range row = row_of(a, 0);; row = row_of(a, row.first + row.count)) {
        for (int at = 0; at < a.num_tail[row.first]; at += 16) {
            const int left = a.num_tail[row.first] - at;
            const uint16_t* keys = gather_keys(a, a.tail[row.first] + at, left < 16 ? left : 16);
            for (int i = 0; i < row.count; i++)
                to[i] = a.scores + (long)(row.first + i) * a.score_stride + a.prefix[row.first] + at;
            kScoreTile[row.count](a.queries + row.first, &keys, a.head_dim, a.scale, to);
        }
        if (row.first + row.count == a.num_queries) break;
    }
}

// Scores [first, count) to weights that are not yet divided by their sum; those below `hidden` become zero.
// Returns 1 / sum.
float soften(float* scores, int first, int hidden, int count) {
    const int padded = (count + 15) / 16 * 16;
    for (int i = first; i < hidden; i++) scores[i] = -INFINITY;
    for (int i = count; i < padded; i++) scores[i] = -INFINITY;
    Floats most = splat(-INFINITY);
    for (int i = first; i < padded; i += 16) most = higher(most, load(scores + i));
    const Floats shift = splat(highest(most));
    Floats sum = zero();
    for (int i = first; i < padded; i += 16) {
        const Floats x = sub(load(scores + i), shift);
        const Floats weight = where_above(x, -87.0f, exponential(x));
        store(scores + i, weight);
        sum = add(sum, weight);
    }
    return 1.0f / total(sum);
}

// Adds the values of slots[first, first + count) to the outputs of `row`; its weight of the first is the score `at`.
void weigh_slots(const Attention& a, Range row, const int32_t* slots, Range which, int at, int run) {
    if (which.count <= 0) return;
    const float* from[kMaxQueries];
    for (int i = 0; i < row.count; i++) from[i] = a.scores + (long)(row.first + i) * a.score_stride + at;
    kWeigh[row.count](from, {a.values, slots, which.first, which.count, a.head_dim, run}, a.outputs + row.first);
}

void attend(const Attention& a) {
    score(a);
    float inverse[kMaxQueries];
    int common = a.prefix[0];
    for (int q = 0; q < a.num_queries; q++) {
        inverse[q] = soften(a.scores + (long)q * a.score_stride, a.first, a.hidden[q], a.prefix[q] + a.num_tail[q]);
        common = a.prefix[q] < common ? a.prefix[q] : common;
        for (int d = 0; d < a.head_dim; d += 16) store(a.outputs[q] + d, zero());
    }
    const int run = a.aligned ? 16 : 1;
    weigh_slots(a, {0, a.num_queries}, a.slots, {a.first, common - a.first}, a.first, run);
    common = common > a.first ? common : a.first;
    for (Range row = row_of(a, 0);; row = row_of(a, row.first + row.count)) {
        const int prefix = a.prefix[row.first];
        weigh_slots(a, row, a.slots, {common, prefix - common}, common, run);
        const int hidden = a.first > prefix ? a.first - prefix : 0;
        weigh_slots(a, row, a.tail[row.first], {hidden, a.num_tail[row.first] - hidden}, prefix + hidden, 1);
        if (row.first + row.count == a.num_queries) break;
    }
    for (int q = 0; q < a.num_queries; q++)
        for (int d = 0; d < a.head_dim; d += 16)
            store(a.outputs[q] + d, mul(load(a.outputs[q] + d), splat(inverse[q])));
}

}  // namespace
