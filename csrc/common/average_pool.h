// Averages over windows of images whose numbers pass through an activation first, y = A phi(z), as kernels see them.

#pragma once

#include "common/activation.h"
#include "common/windows.h"

namespace gradreg_fast {

// What a forward pass leaves of a piecewise linear phi is a bit for each place of each window: whether phi' = 1. A byte
// has those of eight places, and lies with those of the other windows: [bytes of a window, numbers of y]. Other kinds
// need z itself. So there are two cases of what is kept, of which one is null.
struct AveragePool : Windows {
    bool counts_margins;  // as places of the windows that reach into them
    int64_t divisor;      // of all windows; 0: their places
    Kind kind;
    Settings settings;

    GRADREG_FAST_INLINE bool masked() const { return kind == Kind::ReLU || kind == Kind::LeakyReLU; }
    GRADREG_FAST_INLINE int64_t mask_bytes() const { return (places() + 7) / 8; }  // of a window
    GRADREG_FAST_INLINE double negative_slope() const { return kind == Kind::LeakyReLU ? settings.first : 0; }

    // What a number of the window counts.
    template <class T>
    GRADREG_FAST_INLINE T share(int64_t row, int64_t column) const {
        return T(1) / T(divisor ? divisor : extent(0, row) * extent(1, column));
    }

  private:
    GRADREG_FAST_INLINE int64_t extent(int i, int64_t at) const {
        const int64_t begin = at * step[i] - margin[i], border = size[i] + (counts_margins ? margin[i] : 0);
        const int64_t first = counts_margins || begin > 0 ? begin : 0, last = begin + window[i];
        return (last < border ? last : border) - first;
    }
};

// phi and its derivatives at z, of whichever kind.
template <class Phi, class T>
GRADREG_FAST_INLINE Derivatives<T> derivatives_at(const Phi& phi, T z) {
    if constexpr (Phi::from_output)
        return phi.derivatives(phi.value(z));
    else
        return phi.derivatives(z);
}

}  // namespace gradreg_fast
