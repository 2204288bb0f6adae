// One row of logits read once or twice: its maximum, the sum of its exponentials, its entropy. -inf marks a
// token that may not be chosen.
#pragma once
#include "kernels.h"
#include "pointwise.h"

namespace {

constexpr int kChunk = 1024;  // lanes hold few enough terms that single precision keeps six digits

Summary summarize(const float* logits, int count, float sharpness) {
    Floats most = splat(-INFINITY);
    for (int i = 0; i < count; i += 16) most = higher(most, load(logits + i));
    Summary made = {{}, highest(most), 0, 0.0};
    store(made.lanes, most);
    for (int i = 0; i < count; i += 16) {
        const unsigned mask = mask_not_below(load(logits + i), made.highest);
        if (mask) {
            made.at = i + __builtin_ctz(mask);
            break;
        }
    }
    const Floats shift = splat(made.highest);
    for (int start = 0; start < count; start += kChunk) {
        const int end = start + kChunk < count ? start + kChunk : count;
        Floats sum = zero();
        for (int i = start; i < end; i += 16) {
            const Floats x = mul(sub(load(logits + i), shift), splat(sharpness));
            sum = add(sum, where_above(x, -87.0f, exponential(x)));
        }
        made.normalizer += (double)total(sum);
    }
    return made;
}

double entropy(const float* logits, int count, float shift) {
    double nats = 0.0;
    for (int start = 0; start < count; start += kChunk) {
        const int end = start + kChunk < count ? start + kChunk : count;
        Floats sum = zero();
        for (int i = start; i < end; i += 16) {
            const Floats x = sub(load(logits + i), splat(shift));
            // Clamped, so that a token without a chance adds 0 * -87 and not 0 * -inf.
            sum = fma(where_above(x, -87.0f, exponential(x)), higher(x, splat(-87.0f)), sum);
        }
        nats -= (double)total(sum);
    }
    return nats;
}

int list_not_below(const float* x, int count, float limit, int32_t* found, int room) {
    int num_found = 0;
    for (int i = 0; i < count; i += 16) {
        for (unsigned mask = mask_not_below(load(x + i), limit); mask; mask &= mask - 1) {
            if (num_found < room) found[num_found] = i + __builtin_ctz(mask);
            num_found++;
        }
    }
    return num_found;
}

}  // namespace
