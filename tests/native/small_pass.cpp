// Runs one pass of a small random model with two instruction sets and compares every bit of the logits:
//     small_pass scalar neon
// Prints a digest of them. Built with the kernels' sources by test_other_processors.py.
#include <stdio.h>
#include <string.h>

#include <random>
#include <vector>

#include "interface.h"

namespace {

constexpr int kExperts = 4, kExpertFfn = 32;
constexpr int kHidden = 64, kHeads = 4, kKeys = 2, kHeadDim = 16, kFfn = 96, kVocab = 112, kRows = 20, kNoisy = 3;

struct Weights {
    std::mt19937 draw{7};
    std::vector<std::vector<uint8_t>*> kept;
    std::vector<Matrix> experts[3];

    std::vector<float> floats(size_t count, float scale, float shift) {
        std::vector<float> made(count);
        for (float& x : made) x = ((float)(draw() >> 8) / 8388608.0f - 1.0f) * scale + shift;
        return made;
    }
    const float* numbers(size_t count, float scale, float shift) {
        const std::vector<float> made = floats(count, scale, shift);
        auto* bytes = new std::vector<uint8_t>(count * 4);
        memcpy(bytes->data(), made.data(), count * 4);
        kept.push_back(bytes);
        return (const float*)bytes->data();
    }
    Matrix matrix(int outputs, int inputs, int bits) {
        const std::vector<float> x = floats((size_t)outputs * inputs, 0.4f, 0.0f);
        auto* tiles = new std::vector<uint8_t>(vermilion_packed_size(outputs, inputs, bits));
        vermilion_pack(x.data(), 0, outputs, inputs, bits, tiles->data());
        kept.push_back(tiles);
        return {tiles->data(), outputs, inputs, bits, 0};
    }
    Product product(const std::vector<int>& outputs, int inputs, int bits) {
        Product made = {};
        made.denoiser.down = matrix(32 * (int)outputs.size(), inputs, 8);
        for (size_t part = 0; part < outputs.size(); part++) {
            made.parts[part] = matrix(outputs[part], inputs, bits);
            made.denoiser.up[part] = matrix(outputs[part], 32, 8);
        }
        return made;
    }
};

Experts random_experts(Weights& weights, int bits) {
    Experts made = {};
    made.num_experts = kExperts, made.num_active = 2, made.num_groups = made.num_active_groups = 1;
    made.normalized = 1, made.scale = 1.5f, made.ffn_size = kExpertFfn;
    made.router = weights.numbers(kExperts * kHidden, 0.5f, 0.0f);
    for (int i = 0; i < kExperts; i++) {
        weights.experts[0].push_back(weights.matrix(kExpertFfn, kHidden, bits));
        weights.experts[1].push_back(weights.matrix(kExpertFfn, kHidden, bits));
        weights.experts[2].push_back(weights.matrix(kHidden, kExpertFfn, bits));
    }
    made.gate = weights.experts[0].data(), made.up = weights.experts[1].data(), made.down = weights.experts[2].data();
    return made;
}

Layer random_layer(Weights& weights, int bits) {
    Layer layer = {};
    layer.num_kv_heads = kKeys, layer.head_dim = layer.head_norm_size = kHeadDim, layer.ffn_size = kFfn;
    layer.attention_scale = 0.25f;
    layer.attention_norm = weights.numbers(kHidden, 0.3f, 1.0f);
    layer.ffn_norm = weights.numbers(kHidden, 0.3f, 1.0f);
    layer.query_norm = weights.numbers(kHeadDim, 0.3f, 1.0f);
    layer.key_norm = weights.numbers(kHeadDim, 0.3f, 1.0f);
    layer.qkv = weights.product({kHeads * kHeadDim, kKeys * kHeadDim, kKeys * kHeadDim}, kHidden, bits);
    layer.output = weights.product({kHidden}, kHeads * kHeadDim, bits);
    layer.gate_up = weights.product({kFfn, kFfn}, kHidden, bits);
    layer.down = weights.product({kHidden}, kFfn, bits);
    return layer;
}

std::vector<float> logits(const Model& model, const char* instruction_set) {
    Session* session = vermilion_open(&model, 4, 16, 2, instruction_set);
    if (!session) return {};
    const Segment segments[] = {{0, kRows, 0, 0, 0, 1, 0, -1, 0, 0}, {0, kNoisy, kRows, kRows, kRows, 0, 1, -1, 0, 0}};
    std::vector<int32_t> ids(kRows + kNoisy);
    std::vector<uint8_t> masked(ids.size());
    std::vector<Read> reads(ids.size());
    std::vector<Answer> answers(ids.size());
    for (size_t i = 0; i < ids.size(); i++) {
        ids[i] = (int32_t)(i * 37 % 100);
        masked[i] = i > kRows;
        reads[i] = Read{};
        reads[i].row = (int32_t)i;
        reads[i].allowed = -1;
        reads[i].after = -2;
        reads[i].draw = -1;
        reads[i].divisor = 0.7;
        reads[i].signalled = i > kRows;
    }
    const int32_t pages[] = {2, 0, 3}, first_page[] = {0, 3};
    Pass pass = {};
    pass.num_segments = 2, pass.num_requests = 1, pass.num_reads = (int32_t)reads.size();
    pass.segments = segments, pass.ids = ids.data(), pass.masked = masked.data();
    pass.pages = pages, pass.first_page = first_page, pass.reads = reads.data();
    std::vector<float> made(reads.size() * (kVocab + kHidden));
    Answers out = {};
    out.answers = answers.data(), out.logits = made.data(), out.signals = made.data() + reads.size() * kVocab;
    vermilion_run(session, &pass, &out);
    vermilion_close(session);
    return made;
}

}  // namespace

int main(int count, char** names) {
    uint64_t digest = 1469598103934665603ull;
    for (const int bits : {4, 8}) {
        Weights weights;
        std::vector<Layer> layers = {random_layer(weights, bits), random_layer(weights, bits)};
        layers[1].window = 7;
        layers[1].experts = random_experts(weights, bits);
        layers[1].experts.scaled_router = 1;
        for (const float** norm : {&layers[1].attention_out_norm, &layers[1].ffn_out_norm, &layers[1].dense_out_norm,
                                   &layers[1].expert_out_norm, &layers[1].expert_norm, &layers[0].ffn_gate})
            *norm = weights.numbers(kHidden, 0.3f, 1.0f);
        layers[1].scale = 0.7f, layers[1].noisy_scale = 1.1f;
        layers[0].ffn_shift = weights.numbers(kHidden, 0.3f, 0.0f);
        const double frequencies[] = {1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125};
        Model model = {};
        const Rotation rotation = {frequencies, kHeadDim, 1.0f};
        model.num_layers = 2, model.hidden_size = model.hidden_norm_size = kHidden, model.num_heads = kHeads;
        model.vocab_size = kVocab, model.norm_eps = 1e-5f, model.mask_token = -1, model.layers = layers.data();
        model.num_rotations = 1, model.rotations = &rotation, model.activation = kGelu;
        model.embedding_scale = 2.0f, model.logit_softcap = 9.0f;
        model.embedding = model.head = weights.matrix(kVocab, kHidden, 8);
        model.norm = weights.numbers(kHidden, 0.3f, 1.0f);
        model.mask_embedding = weights.numbers(kHidden, 1.0f, 0.0f);
        model.centred = 1;
        model.conditioning.norm = weights.numbers(kHidden, 0.3f, 1.0f);
        const std::vector<float> expected = logits(model, names[1]);
        for (int i = 2; i < count; i++) {
            const std::vector<float> given = logits(model, names[i]);
            if (given.empty() || memcmp(given.data(), expected.data(), given.size() * 4)) {
                printf("%s differs from %s with %d bits\n", names[i], names[1], bits);
                return 1;
            }
        }
        const auto* bytes = (const uint8_t*)expected.data();
        for (size_t i = 0; i < expected.size() * 4; i++) digest = (digest ^ bytes[i]) * 1099511628211ull;
    }
    printf("%016llx\n", (unsigned long long)digest);
    return 0;
}
