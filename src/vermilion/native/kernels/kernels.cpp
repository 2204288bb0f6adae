// Compiled once for each instruction set, which LANES and TABLE name.
#include LANES

#include "attention.h"
#include "halves.h"
#include "kernels.h"
#include "pointwise.h"
#include "product.h"
#include "statistics.h"

const Kernels* TABLE() {
    static const Kernels table = {
        kInstructionSet, normalize, quantize,  multiply, unpack,    rotate,  add_to,         add_scaled,
        gate,            cap,       to_halves, attend,   summarize, entropy, list_not_below, dot_product,
    };
    return &table;
}
