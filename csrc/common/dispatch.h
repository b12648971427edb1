// From an activation's number to its type.

#pragma once

#include "common/activation.h"

namespace gradreg_fast {

// Calls `function` with the activation of this kind.
template <class Math, class Function>
GRADREG_FAST_INLINE void with_kind(Kind kind, Settings settings, Function&& function) {
    switch (kind) {
        case Kind::Identity:
            return function(Identity<Math>(settings));
        case Kind::ReLU:
            return function(ReLU<Math>(settings));
        case Kind::LeakyReLU:
            return function(LeakyReLU<Math>(settings));
        case Kind::Softplus:
            return function(Softplus<Math>(settings));
        case Kind::Tanh:
            return function(Tanh<Math>(settings));
        case Kind::Sigmoid:
            return function(Sigmoid<Math>(settings));
        case Kind::SiLU:
            return function(SiLU<Math>(settings));
        case Kind::GELU:
            return function(GELU<Math>(settings));
        case Kind::GELUTanh:
            return function(GELUTanh<Math>(settings));
        case Kind::Sine:
            return function(Sine<Math>(settings));
        case Kind::Count:
            return;
    }
}

}  // namespace gradreg_fast
