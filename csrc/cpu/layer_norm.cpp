// The operations on normalisations over rows: checks, memory and threads around the kernels of layer_norm.h.

#include "cpu/layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/tensors.h"
#include "cpu/capability.h"
#include "cpu/parts.h"

namespace gradreg_fast {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
const RowNormKernels<T>& kernels() {
    return best_of([](auto capability) -> auto& { return row_norm_kernels<T, capability>(); });
}

template <class T>
const T* statistic(const Optional& tensor, const Tensor& x, int64_t count, const char* name) {
    if (!tensor) return nullptr;
    STD_TORCH_CHECK(tensor->is_cpu(), name, " is on the wrong device");
    STD_TORCH_CHECK(tensor->scalar_type() == x.scalar_type(), name, " has the wrong dtype");
    STD_TORCH_CHECK(tensor->numel() == count && tensor->is_contiguous(), name, " must have ", count, " numbers");
    return data<T>(*tensor);
}

template <class T>
struct Sweeps {
    const Tensor& x;
    const RowNorm<T> norm;

    Sweeps(const Tensor& x, const Optional& mean, const Tensor& inverse, const Optional& weight)
        : x(x), norm(checked(x, mean, inverse, weight)) {}

    static RowNorm<T> checked(const Tensor& x, const Optional& mean, const Tensor& inverse, const Optional& weight) {
        STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
        const int64_t rows = inverse.numel();
        STD_TORCH_CHECK(rows > 0 && x.numel() > 0 && x.numel() % rows == 0,
                        "inverse must have a number for each row of x");
        const int64_t columns = x.numel() / rows;
        return {rows,
                columns,
                data<T>(x),
                statistic<T>(mean, x, rows, "mean"),
                statistic<T>(inverse, x, rows, "inverse"),
                statistic<T>(weight, x, columns, "weight")};
    }

    // Calls pass(begin, end, sums) for parts of the rows; their sums [count], in the order of the parts, to `total`.
    template <class Pass>
    void summed(int64_t count, T* total, Pass&& pass) const {
        const int64_t each = lines_of_part(norm.columns), parts = (norm.rows + each - 1) / each;
        std::vector<T> partial(parts * count, T(0));
        in_parts(norm.rows, each, [&](int64_t part, int64_t begin, int64_t end) {
            pass(begin, end, count ? partial.data() + part * count : nullptr);
        });
        for (int64_t j = 0; j < count; ++j) {
            double sum = 0;
            for (int64_t i = 0; i < parts; ++i)
                sum += partial[i * count + j];
            total[j] = T(sum);
        }
    }

    std::vector<Tensor> project(const Tensor& v, const Optional& second, bool push, bool gradients) const {
        std::vector<Tensor> results{torch::stable::empty_like(v)};
        if (gradients) results.push_back(torch::stable::new_empty(x, {2, norm.columns}));
        T* const result = mutable_data<T>(results[0]);
        summed(gradients ? 2 * norm.columns : 0, gradients ? mutable_data<T>(results[1]) : nullptr,
               [&](int64_t begin, int64_t end, T* sums) {
                   kernels<T>().project(norm, data<T>(v), v.size(0), push, data<T>(second), result, sums, begin, end);
               });
        return results;
    }

    std::vector<Tensor> meet(const Tensor& u, const Tensor& v, bool push) const {
        const int64_t count = norm.weight ? norm.columns : 0;
        std::vector<Tensor> results{torch::stable::empty_like(x), torch::stable::new_empty(x, {count})};
        if (push) results.push_back(torch::stable::empty_like(v));
        T* const second = mutable_data<T>(results[0]);
        T* const ydot = push ? mutable_data<T>(results[2]) : nullptr;
        summed(count, mutable_data<T>(results[1]), [&](int64_t begin, int64_t end, T* sums) {
            kernels<T>().meet(norm, data<T>(u), data<T>(v), v.size(0), second, sums, ydot, begin, end);
        });
        return results;
    }
};

void check_rows(const Tensor& tensor, const Tensor& x, int64_t stack, const char* name) {
    check_like(tensor, x, stack, name);
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

std::vector<Tensor> layer_norm_project(Tensor v, Tensor x, Optional mean, Tensor inverse, Optional weight,
                                       Optional second, bool push, bool gradients) {
    check_rows(v, x, v.size(0), "v");
    if (second) check_rows(*second, x, v.size(0), "second");
    STD_TORCH_CHECK(!gradients || v.size(0) == 1, "gradients are those of one adjoint");
    return with_numbers(x, "x", [&](auto number) {
        return Sweeps<decltype(number)>(x, mean, inverse, weight).project(v, second, push, gradients);
    });
}

std::vector<Tensor> layer_norm_meet(Tensor u, Tensor v, Tensor x, Optional mean, Tensor inverse, Optional weight,
                                    bool push) {
    STD_TORCH_CHECK(v.size(0) > 0, "v must be a stack, [K, ...]");
    check_rows(u, x, v.size(0), "u");
    check_rows(v, x, v.size(0), "v");
    return with_numbers(
        x, "x", [&](auto number) { return Sweeps<decltype(number)>(x, mean, inverse, weight).meet(u, v, push); });
}

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    library.impl("layer_norm_project", TORCH_BOX(&gradreg_fast::layer_norm_project));
    library.impl("layer_norm_meet", TORCH_BOX(&gradreg_fast::layer_norm_meet));
}
