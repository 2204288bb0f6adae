// What is computed component by component: norm, rotation, gate, exponential. Counts are multiples of 16.
#pragma once
#include <math.h>

#include "kernels.h"

namespace {

// exp(x) for x in [-87, 88], clamped to it: 2^n times a polynomial of degree 6; relative error below 3e-7.
inline Floats exponential(Floats x) {
    x = lower(higher(x, splat(-87.0f)), splat(88.0f));
    const Floats n = nearest(mul(x, splat(1.44269504f)));
    Floats rest = fma(n, splat(-0.693359375f), x);
    rest = fma(n, splat(2.12194440e-4f), rest);
    constexpr float kCoefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    Floats made = splat(1.0f / 720);
    for (const float c : kCoefficients) made = fma(made, rest, splat(c));
    return mul(made, power_of_two(n));
}

void normalize(const float* x, const float* weight, int size, int num_real, float eps, float* y) {
    Floats squares = zero();
    for (int i = 0; i < size; i += 16) {
        const Floats part = load(x + i);
        squares = fma(part, part, squares);
    }
    const Floats inverse = splat(1.0f / sqrtf(total(squares) / (float)num_real + eps));
    for (int i = 0; i < size; i += 16) {
        const Floats part = mul(load(x + i), inverse);
        store(y + i, weight ? mul(part, load(weight + i)) : part);
    }
}

void rotate(float* head, const float* cos, const float* sin, int half) {
    int i = 0;
    for (; i + 16 <= half; i += 16) {
        const Floats a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
        store(head + i, sub(mul(a, c), mul(b, s)));
        store(head + half + i, add(mul(b, c), mul(a, s)));
    }
    for (; i < half; i++) {
        const float a = head[i], b = head[half + i];
        head[i] = a * cos[i] - b * sin[i];
        head[half + i] = b * cos[i] + a * sin[i];
    }
}

void add_to(float* y, const float* x, int count) {
    for (int i = 0; i < count; i += 16) store(y + i, add(load(y + i), load(x + i)));
}

void add_scaled(float* y, const float* x, float scale, int count) {
    for (int i = 0; i < count; i += 16) store(y + i, fma(load(x + i), splat(scale), load(y + i)));
}

inline Floats logistic(Floats x) { return div(splat(1.0f), add(splat(1.0f), exponential(sub(zero(), x)))); }

// 1 - 2 / (1 + exp(2x)), which is tanh, with an error below 2e-7.
inline Floats tangent(Floats x) {
    return sub(splat(1.0f), div(splat(2.0f), add(splat(1.0f), exponential(add(x, x)))));
}

// 2 Phi(x / sqrt(2)) - 1 by Abramowitz and Stegun 7.1.26, with an error below 3e-7.
inline Floats error_function(Floats x) {
    const Floats size = magnitude(x), t = div(splat(1.0f), fma(size, splat(0.3275911f), splat(1.0f)));
    constexpr float kCoefficients[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    Floats made = splat(1.061405429f);
    for (const float c : kCoefficients) made = fma(made, t, splat(c));
    const Floats rest = mul(mul(made, t), exponential(sub(zero(), mul(size, size))));
    const Floats positive = sub(splat(1.0f), rest);
    return sub(where_above(x, 0.0f, add(positive, positive)), positive);
}

inline Floats activated(int activation, Floats x) {
    if (activation == kSilu) return div(x, add(splat(1.0f), exponential(sub(zero(), x))));
    if (activation == kLogistic) return logistic(x);
    if (activation == kGeluTanh) {
        const Floats inner = mul(fma(mul(mul(x, x), x), splat(0.044715f), x), splat(0.7978845608f));
        return mul(x, logistic(add(inner, inner)));
    }
    const Floats half = mul(x, splat(0.5f));
    return fma(half, error_function(mul(x, splat(0.7071067812f))), half);
}

void gate(int activation, const float* gate, const float* up, int count, float* y) {
    for (int i = 0; i < count; i += 16) store(y + i, mul(activated(activation, load(gate + i)), load(up + i)));
}

void cap(float* x, int count, float most) {
    for (int i = 0; i < count; i += 16)
        store(x + i, mul(splat(most), tangent(div(load(x + i), splat(most)))));
}

void to_halves(const float* x, int count, uint16_t* halves) {
    constexpr float kMost = 65504.0f;
    for (int i = 0; i < count; i += 16)
        store_half(halves + i, lower(higher(load(x + i), splat(-kMost)), splat(kMost)));
}

float dot_product(const float* a, const float* b, int count) {
    Floats sum = zero();
    for (int i = 0; i < count; i += 16) sum = fma(load(a + i), load(b + i), sum);
    return total(sum);
}

}  // namespace
