#include "experts.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <numeric>

namespace {

constexpr int kTilesPerShare = 8;
constexpr double kLeastSum = 1e-20;  // as LLaDA2's own router adds

// The groups of experts that a row may choose from: those with the highest sums of their two best.
std::vector<bool> open_groups(const Experts& experts, const std::vector<double>& ranks) {
    const int size = experts.num_experts / experts.num_groups;
    std::vector<double> best(experts.num_groups);
    for (int group = 0; group < experts.num_groups; group++) {
        double first = -INFINITY, second = -INFINITY;
        for (int i = group * size; i < (group + 1) * size; i++) {
            second = std::max(second, std::min(first, ranks[i]));
            first = std::max(first, ranks[i]);
        }
        best[group] = size > 1 ? first + second : first;
    }
    std::vector<int> order(experts.num_groups);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return best[a] > best[b]; });
    std::vector<bool> open(experts.num_groups);
    for (int i = 0; i < experts.num_active_groups; i++) open[order[i]] = true;
    return open;
}

}  // namespace

ExpertLayers::ExpertLayers(const Session& session, int num_rows, Team& team)
    : session_(session),
      kernels_(*session.kernels),
      team_(team),
      num_rows_(num_rows),
      hidden_size_(session.model.hidden_size) {
    int most_active = 0, widest = 0;
    for (const Layer& layer : session.layers) {
        most_active = std::max(most_active, layer.experts.num_active);
        widest = std::max(widest, layer.experts.ffn_size);
    }
    const size_t num_visits = (size_t)num_rows * most_active;
    chosen_.resize(num_visits);
    weights_.resize(num_visits);
    visits_.resize(num_visits);
    visit_of_.resize(num_visits);
    inputs_ = CodeBuffer((int)num_visits, hidden_size_);
    gated_ = CodeBuffer((int)num_visits, widest);
    made_.resize(num_visits * hidden_size_);
}

void ExpertLayers::run(const Experts& experts, const float* routed, const Activations& codes, float* made) {
    team_.share(num_rows_, [&](int row) { route(experts, routed + (size_t)row * hidden_size_, row); });
    team_.share(1, [&](int) { group(experts); });
    team_.share(num_rows_ * experts.num_active, [&](int visit) { gather(codes, visit); });
    gate_up(experts);
    down(experts);
    team_.share(num_rows_, [&](int row) { sum(experts, row, made + (size_t)row * hidden_size_); });
}

void ExpertLayers::route(const Experts& experts, const float* routed, int row) {
    std::vector<float> scores(experts.num_experts), normed(experts.scaled_router ? hidden_size_ : 0);
    if (experts.scaled_router) {
        session_.normalize(routed, nullptr, nullptr, normed.data());
        routed = normed.data();
    }
    for (int i = 0; i < experts.num_experts; i++)
        scores[i] = kernels_.dot(routed, experts.router + (size_t)i * hidden_size_, hidden_size_);
    const size_t at = (size_t)row * experts.num_active;
    choose(experts, scores.data(), chosen_.data() + at, weights_.data() + at);
}

void ExpertLayers::choose(const Experts& experts, const float* scores, int32_t* chosen, float* weights) {
    const int count = experts.num_experts;
    std::vector<double> shares(count);
    const double most = *std::max_element(scores, scores + count);
    double total = 0.0;
    for (int i = 0; i < count; i++) {
        shares[i] = experts.sigmoid ? 1.0 / (1.0 + exp(-(double)scores[i])) : exp(scores[i] - most);
        total += shares[i];
    }
    std::vector<double> ranks(count);
    for (int i = 0; i < count; i++) {
        if (!experts.sigmoid) shares[i] /= total;
        ranks[i] = shares[i] + (experts.router_bias ? experts.router_bias[i] : 0.0);
    }
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (experts.num_active_groups < experts.num_groups) {
        const std::vector<bool> open = open_groups(experts, ranks);
        const int size = count / experts.num_groups;
        order.erase(std::remove_if(order.begin(), order.end(), [&](int i) { return !open[i / size]; }), order.end());
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ranks[a] > ranks[b]; });
    order.resize(experts.num_active);
    std::sort(order.begin(), order.end());
    double sum = experts.normalized ? kLeastSum : 1.0;
    if (experts.normalized)
        for (const int i : order) sum += shares[i];
    for (int place = 0; place < experts.num_active; place++) {
        const int expert = order[place];
        chosen[place] = expert;
        weights[place] = (float)(shares[expert] / sum * experts.scale);
        if (experts.expert_scale) weights[place] *= experts.expert_scale[expert];
    }
}

void ExpertLayers::group(const Experts& experts) {
    const int active = experts.num_active, count = num_rows_ * active;
    std::vector<int> first(experts.num_experts + 1);
    for (int i = 0; i < count; i++) first[chosen_[i] + 1]++;
    std::partial_sum(first.begin(), first.end(), first.begin());
    groups_.clear();
    for (int expert = 0; expert < experts.num_experts; expert++)
        if (first[expert] < first[expert + 1])
            groups_.push_back({expert, {first[expert], first[expert + 1] - first[expert]}});
    for (int i = 0; i < count; i++) {
        const int visit = first[chosen_[i]]++;
        visits_[visit] = {i / active, i % active};
        visit_of_[i] = visit;
    }
}

void ExpertLayers::gather(const Activations& codes, int visit) {
    const Activations into = inputs_.view();
    const size_t from = visits_[visit].row, blocks = hidden_size_ / kBlock, stride = codes.stride / kBlock;
    memcpy(into.codes + (size_t)visit * hidden_size_, codes.codes + from * codes.stride, hidden_size_);
    memcpy(into.scales + visit * blocks, codes.scales + from * stride, blocks * sizeof(float));
    memcpy(into.sums + visit * blocks, codes.sums + from * stride, blocks * sizeof(float));
    memcpy(into.totals + visit * blocks, codes.totals + from * stride, blocks * sizeof(int32_t));
}

void ExpertLayers::gate_up(const Experts& experts) {
    const int blocks = experts.ffn_size / kBlock;
    const Activations x = inputs_.view(), into = gated_.view(experts.ffn_size);
    team_.share((int)groups_.size() * blocks, [&](int index) {
        const Group& group = groups_[index / blocks];
        const int block = index % blocks;
        std::vector<float> gate((size_t)group.visits.count * kBlock), up(gate.size());
        const Tiles tiles = {block * 2, 2};
        kernels_.multiply(experts.gate[group.expert], tiles, x, group.visits, {gate.data(), kBlock, false});
        kernels_.multiply(experts.up[group.expert], tiles, x, group.visits, {up.data(), kBlock, false});
        kernels_.gate(session_.model.activation, gate.data(), up.data(), (int)gate.size(), gate.data());
        for (int i = 0; i < group.visits.count; i++)
            kernels_.quantize(gate.data() + (size_t)i * kBlock, kBlock, into, group.visits.first + i, block * kBlock);
    });
}

void ExpertLayers::down(const Experts& experts) {
    const int num_tiles = hidden_size_ / kTile, shares = (num_tiles + kTilesPerShare - 1) / kTilesPerShare;
    const Activations x = gated_.view(experts.ffn_size);
    team_.share((int)groups_.size() * shares, [&](int index) {
        const Group& group = groups_[index / shares];
        const int first = index % shares * kTilesPerShare;
        const Tiles tiles = {first, std::min(kTilesPerShare, num_tiles - first)};
        float* to = made_.data() + (size_t)group.visits.first * hidden_size_ + first * kTile;
        kernels_.multiply(experts.down[group.expert], tiles, x, group.visits, {to, hidden_size_, false});
    });
}

void ExpertLayers::sum(const Experts& experts, int row, float* made) {
    for (int place = 0; place < experts.num_active; place++) {
        const size_t at = (size_t)row * experts.num_active + place;
        kernels_.add_scaled(made, made_.data() + (size_t)visit_of_[at] * hidden_size_, weights_[at], hidden_size_);
    }
}
