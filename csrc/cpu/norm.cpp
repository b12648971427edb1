// The operations on batch normalisation: checks, memory, threads and coefficients around the kernels of norm.h.

#include "cpu/norm.h"

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
const NormKernels<T>& kernels() {
    return best_of([](auto capability) -> auto& { return norm_kernels<T, capability>(); });
}

// A normalisation at x, checked.
struct Norm {
    Tensor x, mean, inverse;
    Optional weight;
    int64_t batch, channels, pixels;

    Norm(const Tensor& x, const Tensor& mean, const Tensor& inverse, const Optional& weight)
        : x(x), mean(mean), inverse(inverse), weight(weight) {
        with_numbers(x, "x", [](auto) {});  // before the others, which must be like x
        STD_TORCH_CHECK(x.dim() >= 2 && x.size(1) > 0, "x must be [B, C, ...]");
        batch = x.size(0), channels = x.size(1), pixels = 1;
        for (int64_t dimension = 2; dimension < x.dim(); ++dimension)
            pixels *= x.size(dimension);
        check_without_gaps(x, "x");
        STD_TORCH_CHECK(channels_last() || x.is_contiguous(), "x must be contiguous or channels last");
        check_shape(mean, {channels}, x.scalar_type(), "mean");
        check_shape(inverse, {channels}, x.scalar_type(), "inverse");
        check_shape(weight, {channels}, x.scalar_type(), "weight");
    }

    bool channels_last() const { return x.stride(1) == 1; }
};

template <class T>
struct Sweeps {
    const Norm& norm;
    const int64_t stack;
    const int64_t channels = norm.channels;
    const NormLayout<T> layout{norm.batch,           channels,        norm.pixels,
                               norm.channels_last(), data<T>(norm.x), data<T>(norm.mean)};

    // Of each channel, [K, count, channels]: in parts, and the parts in their order, so that threads change nothing.
    std::vector<T> sums(const T* u, const T* v) const {
        const int64_t count = stack * (u ? meeting_sums : projected_sums) * channels, lines = layout.lines();
        const int64_t each = lines_of_part(layout.length()), parts = (lines + each - 1) / each;
        std::vector<T> partial(parts * count, T(0));
        in_parts(lines, each, [&](int64_t part, int64_t begin, int64_t end) {
            kernels<T>().sums(layout, u, v, stack, begin, end, partial.data() + part * count);
        });
        std::vector<double> total(count);
        for (int64_t i = 0; i < parts; ++i)
            for (int64_t j = 0; j < count; ++j)
                total[j] += partial[i * count + j];
        return {total.begin(), total.end()};
    }

    void pass(const NormPass<T>& pass) const {
        in_parts(layout.lines(), lines_of_part(layout.length()),
                 [&](int64_t, int64_t begin, int64_t end) { kernels<T>().pass(layout, pass, begin, end); });
    }

    T inverse(int64_t c) const { return data<T>(norm.inverse)[c]; }
    T factor(int64_t c) const { return norm.weight ? data<T>(norm.weight)[c] * inverse(c) : inverse(c); }
    T scale() const { return T(1) / T(std::max<int64_t>(1, norm.batch * norm.pixels)); }

    // The coefficients of J v^k, from the sums of v^k and v^k (x - mean) that begin at `v_sums`.
    void project(std::vector<T>& coefficients, const T* v_sums, int64_t k, int64_t c) const {
        const T inverse_square = inverse(c) * inverse(c);
        coefficients[(4 + 4 * k) * channels + c] = -factor(c) * inverse_square * v_sums[channels + c] * scale();
        coefficients[(5 + 4 * k) * channels + c] = -factor(c) * v_sums[c] * scale();
    }

    std::vector<T> coefficients() const {
        std::vector<T> made((4 + 4 * stack) * channels);
        for (int64_t c = 0; c < channels; ++c)
            made[c] = layout.mean[c], made[channels + c] = factor(c);
        return made;
    }

    std::vector<Tensor> project(const Tensor& v, const Optional& second, bool gradients) const {
        const std::vector<T> sums = this->sums(nullptr, data<T>(v));
        std::vector<T> coefficients = this->coefficients();
        for (int64_t k = 0; k < stack; ++k)
            for (int64_t c = 0; c < channels; ++c)
                project(coefficients, sums.data() + k * projected_sums * channels, k, c);
        std::vector<Tensor> results{torch::stable::empty_like(v)};
        pass({nullptr, data<T>(v), stack, data<T>(second), coefficients.data(), mutable_data<T>(results[0]), nullptr});
        if (!gradients) return results;
        results.push_back(torch::stable::new_empty(norm.mean, {2, channels}));
        T* const by_weight = mutable_data<T>(results[1]);
        for (int64_t c = 0; c < channels; ++c)
            by_weight[c] = sums[channels + c] * inverse(c), by_weight[channels + c] = sums[c];
        return results;
    }

    std::vector<Tensor> meet(const Tensor& u, const Tensor& v, bool push) const {
        const std::vector<T> sums = this->sums(data<T>(u), data<T>(v));
        std::vector<T> coefficients = this->coefficients();
        std::vector<Tensor> results{torch::stable::empty_like(norm.x), torch::stable::empty_like(norm.mean)};
        if (push) results.push_back(torch::stable::empty_like(v));
        for (int64_t c = 0; c < channels; ++c) {
            const T outer = -factor(c) * inverse(c), inverse = this->inverse(c), scale = this->scale();
            T covariance = 0, along = 0, shift = 0;
            for (int64_t k = 0; k < stack; ++k) {
                const T* const of = sums.data() + k * meeting_sums * channels;
                project(coefficients, of, k, c);
                const T v_mean = of[c] * scale, v_xhat = of[channels + c] * inverse * scale;
                const T u_mean = of[2 * channels + c] * scale, u_xhat = of[3 * channels + c] * inverse * scale;
                const T joint = of[4 * channels + c] * scale - u_mean * v_mean;
                covariance += joint - u_xhat * v_xhat;
                along += joint - 3 * u_xhat * v_xhat;
                shift -= v_xhat * u_mean + u_xhat * v_mean;
                coefficients[(6 + 4 * k) * channels + c] = outer * v_xhat;
                coefficients[(7 + 4 * k) * channels + c] = outer * u_xhat;
            }
            coefficients[2 * channels + c] = outer * inverse * along;
            coefficients[3 * channels + c] = outer * shift;
            mutable_data<T>(results[1])[c] = inverse * covariance / scale;
        }
        pass({data<T>(u), data<T>(v), stack, nullptr, coefficients.data(), push ? mutable_data<T>(results[2]) : nullptr,
              mutable_data<T>(results[0])});
        return results;
    }
};

// J is symmetric, so that `push` changes nothing.
std::vector<Tensor> norm_project(Tensor v, Tensor x, Tensor mean, Tensor inverse, Optional weight, Optional second,
                                 bool /*push*/, bool gradients) {
    const Norm norm(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_like(v, x, stack, "v");
    if (second) check_like(*second, x, 1, "second");
    STD_TORCH_CHECK(!gradients || stack == 1, "gradients are those of one adjoint");
    return with_numbers(
        x, "x", [&](auto number) { return Sweeps<decltype(number)>{norm, stack}.project(v, second, gradients); });
}

std::vector<Tensor> norm_meet(Tensor u, Tensor v, Tensor x, Tensor mean, Tensor inverse, Optional weight, bool push) {
    const Norm norm(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_like(u, x, stack, "u");
    check_like(v, x, stack, "v");
    return with_numbers(x, "x", [&](auto number) { return Sweeps<decltype(number)>{norm, stack}.meet(u, v, push); });
}

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    library.impl("norm_project", TORCH_BOX(&gradreg_fast::norm_project));
    library.impl("norm_meet", TORCH_BOX(&gradreg_fast::norm_meet));
}
