// The MLP kernels of csrc/cuda, run on the CPU: the two operations over plain pointers, for pytest (test_cuda_mlp.py)
// and, as a program with -DPROGRAM, for AddressSanitizer.

#include <functional>
#include <vector>

#include "cuda/conv.cuh"
#include "cuda/layerwise.cuh"
#include "cuda/mlp.cuh"

namespace {

using namespace gradreg_fast;
using namespace gradreg_fast::cuda;

// What the launcher of csrc/cuda/launch.cuh is on a GPU.
struct Launcher {
    cuda_on_cpu::Order order;
    int skipped_barrier;  // of the first launch, or of all
    bool in_all = false;
    mutable int launches = 0;

    template <class Parameters>
    void operator()(void (*kernel)(Parameters), int columns, int rows, int shared_bytes,
                    const std::remove_const_t<Parameters>& parameters) const {
        cuda_on_cpu::launch({{unsigned(columns), unsigned(rows), 1},
                             {unsigned(threads), 1, 1},
                             size_t(shared_bytes),
                             order,
                             launches++ && !in_all ? -1 : skipped_barrier},
                            [&] { kernel(parameters); });
    }
};

// Memory of exactly this size, every byte 0xFF: NaN.
template <class T>
struct Memory {
    std::unique_ptr<T[]> pointer;
    explicit Memory(int64_t count) : pointer(new T[count]) { std::memset(pointer.get(), 0xFF, count * sizeof(T)); }
};

// A network without pointers.
struct Sizes {
    std::vector<int> widths, kinds;
    std::vector<double> settings;
    int64_t rows;
    int stack, loss;
    bool unit_seed;
};

template <class S>
void describe(const Sizes& sizes, Network<S>& network) {
    network.depth = int(sizes.kinds.size());
    network.stack = sizes.stack;
    network.rows = sizes.rows;
    network.unit_seed = sizes.unit_seed;
    network.target.loss = Loss(sizes.loss);
    for (int l = 0; l < network.depth; ++l) {
        network.layers[l].inputs = sizes.widths[l];
        network.layers[l].outputs = sizes.widths[l + 1];
        network.layers[l].kind = Kind(sizes.kinds[l]);
        network.layers[l].settings = {sizes.settings[2 * l], sizes.settings[2 * l + 1]};
    }
}

struct Machine {
    Device device;
    cuda_on_cpu::Order order;
    int skipped_barrier;
    int missing_bytes;  // of shared memory
    bool layerwise;
};

// Launches with less shared memory than asked for.
struct Cramped {
    Launcher launcher;
    int missing_bytes;

    template <class Kernel, class Parameters>
    void operator()(Kernel kernel, int columns, int rows, int shared_bytes, const Parameters& parameters) const {
        launcher(kernel, columns, rows, std::max(shared_bytes - missing_bytes, 0), parameters);
    }
};

template <class Arithmetic>
auto layerwise(const Machine& machine) {
    const Cramped launch{{machine.order, machine.skipped_barrier, true}, machine.missing_bytes};
    return Layerwise<Arithmetic, Cramped>(machine.device, launch);
}

template <class Arithmetic, class S>
void run_forward_layerwise(ForwardPull<S>& p, S* kept, const Machine& machine) {
    LayerwiseMemory<S> also;
    Memory<char> own(p.keep ? 0 : place_layers(p, also, false, nullptr));
    place_layers(p, also, p.keep, p.keep ? reinterpret_cast<char*>(kept) : own.pointer.get());
    S* top;
    Wide<S>* scratch;
    Memory<char> workspace(place_top(p, nullptr, top, scratch));
    layerwise<Arithmetic>(machine).forward_pull(p, also, workspace.pointer.get());
}

template <class Arithmetic, class S>
void run_backward_layerwise(PushAdjoint<S>& p, S* kept, const Machine& machine) {
    LayerwiseMemory<S> also;
    place_layers(p, also, true, reinterpret_cast<char*>(kept));
    int size;
    plan_layerwise(p, p.gbar != nullptr, machine.device, size);
    LayerwiseWorkspace<S> space;
    Memory<char> workspace(place_layerwise(p, nullptr, space));
    layerwise<Arithmetic>(machine).push_adjoint(p, also, workspace.pointer.get(), size);
}

// Rows of a tile, or 0 where the network does not fit.
template <class Arithmetic, class S>
int run_forward(ForwardPull<S>& p, S* kept, const Machine& machine) {
    if (machine.layerwise) {
        run_forward_layerwise<Arithmetic>(p, kept, machine);
        return 1;
    }
    Plan plan;
    if (!plan_tiles(p, false, machine.device, plan)) return 0;
    std::unique_ptr<Memory<S>> states;
    if (p.keep) {
        place_kept(p, kept);
    } else {
        states = std::make_unique<Memory<S>>(states_size(p, plan));
        place_states(p, plan, states->pointer.get());
    }
    plan.shared_bytes -= machine.missing_bytes;
    run_forward_pull<Arithmetic>(p, plan, Launcher{machine.order, machine.skipped_barrier});
    return p.resident ? plan.rows : -plan.rows;
}

template <class Arithmetic, class S>
int run_backward(PushAdjoint<S>& p, S* kept, const Machine& machine) {
    if (machine.layerwise) {
        run_backward_layerwise<Arithmetic>(p, kept, machine);
        return 1;
    }
    Plan plan;
    place_kept(p, kept);
    if (!plan_push_adjoint(p, p.gbar != nullptr, machine.device, plan)) return 0;
    Memory<char> workspace(place_workspace(p, nullptr));
    place_workspace(p, workspace.pointer.get());
    plan.shared_bytes -= machine.missing_bytes;
    run_push_adjoint<Arithmetic>(p, plan, Launcher{machine.order, machine.skipped_barrier});
    return plan.rows;
}

}  // namespace

#if defined(PROGRAM)

#include <cstdio>

// All gradients of one network, with every block of memory of exactly the size it must have.
template <class Arithmetic>
void run(const std::vector<int>& widths, Kind kind, Loss loss, int64_t rows, int stack, Device device,
         bool layerwise = false) {
    using S = typename Arithmetic::Storage;
    const int depth = int(widths.size()) - 1, inputs = widths.front(), outputs = widths.back();
    std::vector<int> kinds(depth, int(kind));
    kinds.back() = int(Kind::Identity);
    const bool unit_seed = is_straight(kind) && outputs == 1 && stack == 1 && loss == Loss::None;
    const Sizes sizes{widths, kinds, std::vector<double>(2 * depth, 1.5), rows, stack, int(loss), unit_seed};
    std::vector<Memory<S>> memories;
    std::vector<Memory<Wide<S>>> wide;
    const auto take = [&](int64_t count) {
        memories.emplace_back(count);
        S* const numbers = memories.back().pointer.get();
        for (int64_t i = 0; i < count; ++i)
            numbers[i] = narrow<S>(Wide<S>(i % 7 - 3) / 8);
        return numbers;
    };
    const auto take_wide = [&](int64_t count) {
        wide.emplace_back(count);
        std::fill_n(wide.back().pointer.get(), count, Wide<S>(0.25));
        return wide.back().pointer.get();
    };
    ForwardPull<S> forward{};
    describe(sizes, forward);
    for (int l = 0; l < depth; ++l) {
        forward.layers[l].weight = take(widths[l] * widths[l + 1]);
        forward.layers[l].bias = take(widths[l + 1]);
    }
    forward.x = take(rows * inputs);
    if (loss == Loss::None) forward.cotangent = take(stack * rows * outputs);
    forward.target.values = loss == Loss::None ? nullptr : take(rows * outputs);
    forward.offset = take(stack * rows * inputs);
    forward.y = take(rows * outputs);
    forward.g = take(stack * rows * inputs);
    forward.norms = take_wide(rows);
    LayerwiseMemory<S> also;
    const int64_t layers = place_layers(forward, also, true, nullptr) / int64_t(sizeof(S));
    S* const kept = take(layerwise ? layers : kept_size(forward));
    const auto order = cuda_on_cpu::Order::Shuffled;
    for (const bool keep : {false, true}) {
        forward.keep = keep;
        run_forward<Arithmetic>(forward, kept, {device, order, -1, 0, layerwise});
    }
    PushAdjoint<S> backward{};
    static_cast<Network<S>&>(backward) = forward;
    for (int l = 0; l < depth; ++l) {
        backward.layers[l].weight_gradient = take(widths[l] * widths[l + 1]);
        backward.layers[l].bias_gradient = take(widths[l + 1]);
    }
    backward.ybar = take(rows * outputs);
    backward.gbar = forward.g;
    backward.norm_weights = forward.norms;
    backward.xbar = take(rows * inputs);
    if (loss == Loss::None) backward.cotangent_bar = take(stack * rows * outputs);
    run_backward<Arithmetic>(backward, kept, {device, order, -1, 0, layerwise});
}

// All sweeps of one convolution, likewise.
template <class Arithmetic>
void run(const Convolution& c, int64_t stack, Kind kind, Device device) {
    using S = typename Arithmetic::Storage;
    const int64_t outer = c.pixels() * c.outputs, inner = c.samples * c.size[0] * c.size[1] * c.inputs;
    const int64_t weights = int64_t(c.outputs) * c.taps() * c.inputs;
    Memory<S> x(stack * inner), u(stack * outer), y(outer), state(outer), ydot(stack * outer), below(stack * inner),
        above(stack * inner);
    Memory<S> weight(weights), bias(c.outputs), gradient(weights);
    Memory<Wide<S>> second(outer), terms(stack * outer);
    const auto at = [](const auto& memory) { return memory.pointer.get(); };
    std::fill_n(at(x), stack * inner, narrow<S>(0.5f));
    std::fill_n(at(u), stack * outer, narrow<S>(0.5f));
    std::fill_n(at(weight), weights, narrow<S>(0.5f));
    std::fill_n(at(bias), c.outputs, narrow<S>(0.5f));
    const Settings settings{1.5, 20};
    const Convolve<Arithmetic, Launcher> convolve(c, device, Launcher{cuda_on_cpu::Order::Shuffled, -1});
    convolve.forward({at(x), at(weight), at(bias), kind, settings, at(y), at(state)});
    convolve.push({stack, at(x), at(weight), at(state), at(u), kind, settings, at(ydot), at(second), at(terms)});
    Down<S> down{};
    down.rows = c.samples * c.size[0] * c.size[1], down.lines = stack * down.rows, down.columns = c.inputs;
    down.kind = kind, down.settings = settings;
    down.state = at(x), down.above = at(above), down.result = at(below);
    convolve.pull(stack, at(u), at(weight), down);
    const GradientPlan plan = plan_gradient<S>(c, stack, device);
    Memory<Wide<S>> sums(plan.slices * weights);
    convolve.gradient(stack, at(u), at(x), plan, at(sums), at(gradient));
}

int main() {
    const Convolution odd{2, 3, 5, {7, 6}, {4, 3}, {3, 2}, {2, 2}, {1, 0}, {1, 1}};
    const Convolution whole{2, 8, 16, {6, 5}, {6, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}};
    const Convolution dilated{2, 2, 8, {9, 8}, {9, 4}, {3, 3}, {1, 1}, {2, 0}, {2, 2}};
    for (const Convolution& c : {odd, whole, dilated}) {
        run<Exact<float>>(c, 2, Kind::SiLU, {3, 0});
        run<Halves<BFloat16>>(c, 1, Kind::Tanh, {1, 0});
    }
    run<Exact<float>>({130, 72, 131}, Kind::Sine, Loss::None, 140, 2, {1, 227 << 10}, true);
    run<Exact<float>>({130, 70, 1}, Kind::ReLU, Loss::None, 300, 1, {8, 227 << 10}, true);
    run<Halves<BFloat16>>({64, 72, 3}, Kind::SiLU, Loss::CrossEntropy, 70, 1, {1, 227 << 10}, true);
    run<TF32>({9, 40, 2}, Kind::Tanh, Loss::None, 33, 3, {1, 227 << 10}, true);
    const Device large{3, 227 << 10}, small{3, 26 << 10};
    for (const Device device : {large, small})
        for (const int64_t rows : {1, 37})
            for (const int stack : {1, 2}) {
                const Loss loss = stack == 1 && rows > 1 ? Loss::CrossEntropy : Loss::None;
                run<Exact<float>>({3, 17, 9, 1}, Kind::LeakyReLU, Loss::None, rows, stack, device);
                run<Exact<float>>({5, 33, 4}, Kind::Tanh, loss, rows, stack, device);
                run<Exact<double>>({2, 17, 3}, Kind::Softplus, loss, rows, stack, device);
                run<TF32>({3, 20, 9, 2}, Kind::GELU, loss, rows, stack, device);
                run<Halves<BFloat16>>({3, 20, 9, 2}, Kind::SiLU, loss, rows, stack, device);
                run<Halves<Float16>>({3, 20, 9, 1}, Kind::ReLU, Loss::None, rows, stack, device);
            }
    run<Exact<float>>({130, 70, 131}, Kind::Sine, Loss::None, 300, 1, large);
    std::puts("right");
}

#else

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace {

using Pointer = uintptr_t;

template <class T>
T* at(Pointer pointer) {
    return reinterpret_cast<T*>(pointer);
}

// Calls function(arithmetic) with the kind of products of this name.
template <class Function>
int with_arithmetic(const std::string& name, Function&& function) {
    if (name == "float32") return function(Exact<float>{});
    if (name == "float64") return function(Exact<double>{});
    if (name == "tf32") return function(TF32{});
    if (name == "bfloat16") return function(Halves<BFloat16>{});
    return function(Halves<Float16>{});
}

}  // namespace

PYBIND11_MODULE(cuda_mlp, module) {
    namespace py = pybind11;
    py::class_<Machine>(module, "Machine")
        .def(py::init([](int multiprocessors, int shared_bytes, int order, int skipped_barrier, int missing_bytes,
                         bool layerwise) {
                 return Machine{{multiprocessors, shared_bytes},
                                cuda_on_cpu::Order(order),
                                skipped_barrier,
                                missing_bytes,
                                layerwise};
             }),
             py::arg("multiprocessors") = 2, py::arg("shared_bytes") = 227 << 10, py::arg("order") = 0,
             py::arg("skipped_barrier") = -1, py::arg("missing_bytes") = 0, py::arg("layerwise") = false);
    py::class_<Sizes>(module, "Sizes")
        .def(py::init([](std::vector<int> widths, std::vector<int> kinds, std::vector<double> settings, int64_t rows,
                         int stack, int loss,
                         bool unit_seed) { return Sizes{widths, kinds, settings, rows, stack, loss, unit_seed}; }))
        .def("kept_size",
             [](const Sizes& sizes) {
                 Network<float> network{};
                 describe(sizes, network);
                 return kept_size(network);
             })
        .def("kept_layers", [](const Sizes& sizes, const std::string& arithmetic) {
            return with_arithmetic(arithmetic, [&](auto name) {
                using S = typename decltype(name)::Storage;
                Network<S> network{};
                describe(sizes, network);
                LayerwiseMemory<S> also;
                return int(place_layers(network, also, true, nullptr) / sizeof(S));
            });
        });
    module.def("forward_pull",
               [](const std::string& arithmetic, const Machine& machine, const Sizes& sizes,
                  std::vector<Pointer> weights, std::vector<Pointer> biases, Pointer x, Pointer cotangent,
                  Pointer classes, Pointer values, Pointer offset, Pointer y, Pointer g, Pointer norms, Pointer kept) {
                   return with_arithmetic(arithmetic, [&](auto name) {
                       using S = typename decltype(name)::Storage;
                       ForwardPull<S> p{};
                       describe(sizes, p);
                       for (int l = 0; l < p.depth; ++l) {
                           p.layers[l].weight = at<S>(weights[l]);
                           p.layers[l].bias = at<S>(biases[l]);
                       }
                       p.x = at<S>(x);
                       p.cotangent = at<S>(cotangent);
                       p.target.classes = at<int64_t>(classes);
                       p.target.values = at<S>(values);
                       p.keep = kept != 0;
                       p.offset = at<S>(offset);
                       p.y = at<S>(y);
                       p.g = at<S>(g);
                       p.norms = at<Wide<S>>(norms);
                       return run_forward<decltype(name)>(p, at<S>(kept), machine);
                   });
               });
    module.def("push_adjoint",
               [](const std::string& arithmetic, const Machine& machine, const Sizes& sizes,
                  std::vector<Pointer> weights, Pointer x, Pointer cotangent, Pointer classes, Pointer values,
                  Pointer kept, Pointer ybar, Pointer gbar, Pointer norm_weights, Pointer xbar, Pointer cotangent_bar,
                  std::vector<Pointer> weight_gradients, std::vector<Pointer> bias_gradients) {
                   return with_arithmetic(arithmetic, [&](auto name) {
                       using S = typename decltype(name)::Storage;
                       PushAdjoint<S> p{};
                       describe(sizes, p);
                       for (int l = 0; l < p.depth; ++l) {
                           p.layers[l].weight = at<S>(weights[l]);
                           p.layers[l].weight_gradient = at<S>(weight_gradients[l]);
                           p.layers[l].bias_gradient = at<S>(bias_gradients[l]);
                       }
                       p.x = at<S>(x);
                       p.cotangent = at<S>(cotangent);
                       p.target.classes = at<int64_t>(classes);
                       p.target.values = at<S>(values);
                       p.ybar = at<S>(ybar);
                       p.gbar = at<S>(gbar);
                       p.norm_weights = at<Wide<S>>(norm_weights);
                       p.xbar = at<S>(xbar);
                       p.cotangent_bar = at<S>(cotangent_bar);
                       return run_backward<decltype(name)>(p, at<S>(kept), machine);
                   });
               });
}

#endif
