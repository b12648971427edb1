// Where a network's packed parameters and kept values are in the one piece of memory that goes between its operations.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/mlp.h"

namespace gradreg_fast {

struct Places {
    std::vector<int64_t> weight, transposed, bias, state, cotangent;  // of each layer; -1: not there
    int64_t total = 0;

    // `widths`: of the input and of each layer.
    Places(const std::vector<int64_t>& widths, int64_t element_size, int64_t lanes, int64_t rows, int64_t stack,
           bool keep) {
        const auto take = [this](int64_t count, bool present) {
            const int64_t place = present ? total : -1;
            if (present) total += count;
            return place;
        };
        const bool packed = !prefers_library(*std::max_element(widths.begin(), widths.end()), element_size);
        for (size_t l = 0; l + 1 < widths.size(); ++l) {
            const int64_t inputs = widths[l], outputs = widths[l + 1];
            const int64_t input_stride = (inputs + lanes - 1) / lanes * lanes;
            const int64_t output_stride = (outputs + lanes - 1) / lanes * lanes;
            weight.push_back(take(outputs * input_stride, packed && !serves_plain(inputs, lanes, element_size)));
            transposed.push_back(take(inputs * output_stride, packed));
            bias.push_back(take(output_stride, true));
            state.push_back(take(rows * output_stride, keep));
            cotangent.push_back(take(rows * stack * output_stride, keep));
        }
    }
};

}  // namespace gradreg_fast
