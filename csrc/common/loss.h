// Losses on top of a network, each sample's own: their gradient in y, which is the cotangent, and products with their
// Hessian.

#pragma once

#include "common/math.h"

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

namespace gradreg_fast {

// The order is that of `LOSSES` in gradreg_fast/mlp.py.
enum class Loss : int { None, CrossEntropy, MeanSquare, Logistic, Count };

// S: what numbers are stored in.
template <class S>
struct Target {
    Loss loss;
    const int64_t* classes;  // [B]; negative: the sample counts nothing; cross-entropy has either these
    const S* values;         // [B, outputs] or these
};

// p = softmax(y), of one row; in place, too.
template <class T>
GRADREG_FAST_INLINE void softmax(int64_t width, const T* y, T* p) {
    T largest = y[0], sum = 0;
    for (int64_t i = 1; i < width; ++i)
        largest = y[i] > largest ? y[i] : largest;
    for (int64_t i = 0; i < width; ++i)
        sum += p[i] = ::exp(y[i] - largest);
    for (int64_t i = 0; i < width; ++i)
        p[i] /= sum;
}

template <class T>
GRADREG_FAST_INLINE T logistic(T y) {
    return y >= 0 ? 1 / (1 + ::exp(-y)) : 1 - 1 / (1 + ::exp(y));
}

// The weight t_i that sample b's target gives class i, and their sum.
template <class T, class S>
GRADREG_FAST_INLINE T class_weight(const Target<S>& target, int64_t b, int64_t width, int64_t i) {
    return target.classes ? T(target.classes[b] == i) : T(target.values[b * width + i]);
}
template <class T, class S>
GRADREG_FAST_INLINE T class_weights(const Target<S>& target, int64_t b, int64_t width) {
    if (target.classes) return target.classes[b] < width ? T(target.classes[b] >= 0) : T(0) / T(0);  // no such class
    T sum = 0;
    for (int64_t i = 0; i < width; ++i)
        sum += T(target.values[b * width + i]);
    return sum;
}

// The loss's gradient in y, of sample b; in place, too.
template <class T, class S>
GRADREG_FAST_INLINE void loss_gradient(const Target<S>& target, int64_t b, int64_t width, const T* y, T* gradient) {
    if (target.loss == Loss::CrossEntropy) {  // (sum t) p - t
        softmax(width, y, gradient);
        const T sum = class_weights<T>(target, b, width);
        for (int64_t i = 0; i < width; ++i)
            gradient[i] = sum * gradient[i] - class_weight<T>(target, b, width, i);
    } else if (target.loss == Loss::MeanSquare) {  // 2/n (y - t)
        for (int64_t i = 0; i < width; ++i)
            gradient[i] = 2 * (y[i] - T(target.values[b * width + i])) / width;
    } else {  // (s(y) - t) / n
        for (int64_t i = 0; i < width; ++i)
            gradient[i] = (logistic(y[i]) - T(target.values[b * width + i])) / width;
    }
}

// v = H v with the loss's Hessian in y, of sample b. y is lost.
template <class T, class S>
GRADREG_FAST_INLINE void multiply_by_hessian(const Target<S>& target, int64_t b, int64_t width, T* y, T* v) {
    if (target.loss == Loss::CrossEntropy) {  // (sum t) p (v - p^T v)
        softmax(width, y, y);
        T mean = 0;
        for (int64_t i = 0; i < width; ++i)
            mean += y[i] * v[i];
        const T sum = class_weights<T>(target, b, width);
        for (int64_t i = 0; i < width; ++i)
            v[i] = sum * y[i] * (v[i] - mean);
    } else if (target.loss == Loss::MeanSquare) {
        for (int64_t i = 0; i < width; ++i)
            v[i] = 2 * v[i] / width;
    } else {
        for (int64_t i = 0; i < width; ++i)
            v[i] *= logistic(y[i]) * logistic(-y[i]) / width;
    }
}

}  // namespace gradreg_fast
