// Which instruction sets this processor and its operating system allow.
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

namespace {

struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r = {0, 0, 0, 0};
    if (__get_cpuid_max(0, nullptr) >= leaf) __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
    return r;
}

bool all_set(unsigned value, unsigned bits) { return (value & bits) == bits; }

// The register files that the system saves when it switches threads.
unsigned long saved_registers() {
    const unsigned kOsxsave = 1u << 27;
    if (!(cpuid(1, 0).c & kOsxsave)) return 0;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has_avx2() {
    const unsigned kFma = 1u << 12, kAvx = 1u << 28, kF16c = 1u << 29, kAvx2 = 1u << 5;
    return all_set(cpuid(1, 0).c, kFma | kAvx | kF16c) && all_set(cpuid(7, 0).b, kAvx2) &&
           all_set((unsigned)saved_registers(), 0x6);
}

bool has_avxvnni() { return has_avx2() && (cpuid(7, 1).a & 1u << 4); }

bool has_avx512vnni() {
    const unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31, kVnni = 1u << 11;
    return has_avx2() && all_set(cpuid(7, 0).b, kF | kDq | kBw | kVl) && (cpuid(7, 0).c & kVnni) &&
           all_set((unsigned)saved_registers(), 0xe6);
}

}  // namespace
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

const Kernels* choose_kernels(const char* name) {
    const Kernels* available[4];
    int count = 0;
#if defined(__x86_64__)
    if (has_avx512vnni()) available[count++] = kernels_avx512vnni();
    if (has_avxvnni()) available[count++] = kernels_avxvnni();
    if (has_avx2()) available[count++] = kernels_avx2();
#elif defined(__linux__) && defined(__aarch64__)
    const unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
    if (getauxval(AT_HWCAP) & kDotProduct) available[count++] = kernels_neon();
#elif defined(__aarch64__)
    available[count++] = kernels_neon();  // all of Apple's and Windows' processors have the dot product
#endif
    available[count++] = kernels_scalar();
    if (!name || !*name) return available[0];
    for (int i = 0; i < count; i++)
        if (!strcmp(available[i]->name, name)) return available[i];
    return nullptr;
}
