// The operations' schemas, and nothing else. Their fake kernels are in gradreg_fast/backend.py.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gradreg_fast, library) {
    // Sweeps 1 and 2 of a fully connected network. Layer l has kinds[l] and settings[2 l], settings[2 l + 1]
    // (activation.h). x [B, d]; cotangent [stack, B, n] or None for ones; a loss (cpu/mlp.h) on top makes the cotangent
    // from its target, classes [B] or values [B, n]; offset [stack, B, d] or None is subtracted from g; unit_seed: see
    // cpu/mlp.h; keep: whether push_adjoint follows. Returns y [B, n], g [stack, B, d], its squared norms [B] (float32
    // of 16 bits) and what was kept. On CUDA devices settings may have one number more: whether float32 products may be
    // TF32.
    library.def(
        "mlp_forward_pull(Tensor x, Tensor? cotangent, Tensor? target, Tensor? offset, Tensor[] weights, "
        "Tensor?[] biases, int[] kinds, float[] settings, int loss, int stack, bool unit_seed, bool keep) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
    // Sweeps 3 and 4. ybar [B, n] and gbar [stack, B, d]: None where nothing depends on y or on g. With norm_weights
    // [B], the norms' adjoint, gbar is g instead. wanted: a flag for each of x, cotangent, W_1, b_1, W_2, ...; returns
    // the wanted gradients in this order.
    library.def(
        "mlp_push_adjoint(Tensor x, Tensor? cotangent, Tensor? target, Tensor kept, Tensor[] weights, int[] kinds, "
        "float[] settings, int loss, int stack, bool unit_seed, Tensor? ybar, Tensor? gbar, Tensor? norm_weights, "
        "int[] wanted) -> Tensor[]");
    // A convolution block, y = pool(phi(W * x + b)) (cpu/conv.h). options: stride, padding and dilation; the pooling's
    // number, window, step and margin; the activation's number; whether resulting images lie channels last. Pairs are
    // of the height and the width. Images are [B, C, H, W], stacks [K, B, C, H, W]. Sweep 1: returns y and what the
    // other sweeps need.
    library.def(
        "conv_forward(Tensor x, Tensor weight, Tensor? bias, int[] options, float[] settings) -> (Tensor, Tensor)");
    // Sweep 3. u: cotangents of y, where tangents meet them. Returns, each if wanted: ydot; the second-order term of
    // z's adjoint, sum_k phi'' u zdot; the weight's gradient, sum_k u_z (x) xdot.
    library.def(
        "conv_push(Tensor xdot, Tensor? u, Tensor kept, Tensor weight, int[] options, float[] settings, bool push, "
        "bool curvature, bool gradient) -> Tensor[]");
    // Sweeps 2 and 4. u: cotangents, or one adjoint, of y; second: from conv_push; shape: of x. Returns, each if
    // wanted: what is pulled to x; the weight's gradient, if x is given; the bias's.
    library.def(
        "conv_pull(Tensor? u, Tensor? second, Tensor? x, Tensor kept, Tensor weight, int[] shape, int[] options, "
        "float[] settings, bool pull, bool bias) -> Tensor[]");
    // A convolution and the activation behind it on CUDA devices (cuda/conv.h): options and settings as above, without
    // pooling, channels last; settings may have one number more, whether float32 products may be TF32. state: what the
    // activation's derivatives take. Sweep 1: returns y and the state, empty if that is y.
    library.def(
        "image_forward(Tensor x, Tensor weight, Tensor? bias, int[] options, float[] settings) -> (Tensor, Tensor)");
    // Sweep 3. u: cotangents of z or, where slopes vanish while they bend (SiLU, GELU, sine), of y. Returns ydot if
    // `push`, and, if u is given, the second-order term of z's adjoint, sum_k phi'' u zdot, flat.
    library.def(
        "image_push(Tensor xdot, Tensor? u, Tensor? state, Tensor weight, int[] options, float[] settings, bool push) "
        "-> Tensor[]");
    // Sweeps 2 and 4. u: a stack of cotangents, or one adjoint, of z; the activation of options and settings, the state
    // and the second-order term are those of what made x, whose height and width `size` has. Returns phi' v + second
    // for v = W^T * u and, if `above`, v.
    library.def(
        "image_pull(Tensor u, Tensor weight, Tensor? state, Tensor? second, int[] size, int[] options, "
        "float[] settings, bool above) -> Tensor[]");
    // phi' v + second alone, for a stack of cotangents, or one adjoint, of y.
    library.def("image_slope(Tensor? v, Tensor state, Tensor? second, int kind, float[] settings) -> Tensor");
    // The weight's gradient for stacks u, of z, and x: sum_k u^k (x) x^k.
    library.def(
        "image_gradient(Tensor u, Tensor x, Tensor weight, int[] options, float[] settings) -> Tensor");
    // ||J||_F^2 of a network of fully connected layers with ReLU between them, from its active units alone. hidden: [B,
    // n] of each hidden layer, after ReLU; weights: W_1, or with `gram` W_1 W_1^T, and W_2, ..., W_L. Returns the norms
    // [B] and, if `keep`, the cotangents for the gradients, in a layout of their own (cpu/active.h).
    library.def("active_sqnorm(Tensor[] hidden, Tensor[] weights, bool gram, bool keep) -> (Tensor, Tensor[])");
    // The gradients of sum_b factor_b norm_b / 2 in those weights of which a flag is `wanted`. With `gram`, the first
    // is M = sum_b factor_b U^T U for the cotangents U of the first hidden layer, on and below the diagonal: M W_1 is
    // W_1's.
    library.def(
        "active_sqnorm_gradients(Tensor[] hidden, Tensor[] weights, bool gram, Tensor[] cotangents, Tensor factor, "
        "int[] wanted) -> Tensor[]");
    // The passes of an activation (common/elementwise.h); tensors without gaps, all in the layout of z. kept: what the
    // forward pass returned as mask if there is one, else y if the activation's derivatives take that, else z. Stacks
    // are [K, ...]. Forward: returns y and the mask.
    library.def("activate(Tensor z, int kind, float[] settings, bool masked) -> (Tensor, Tensor)");
    // In the memory of z; returns the mask.
    library.def("activate_(Tensor(a!) z, int kind, float[] settings, bool masked) -> Tensor");
    // phi' v for a stack, and the same in the memory of v.
    library.def("activation_slope(Tensor kept, Tensor v, int kind, float[] settings) -> Tensor");
    library.def("activation_slope_(Tensor kept, Tensor(a!) v, int kind, float[] settings) -> ()");
    // sum_k u^k xdot^k and, if wanted, phi' xdot.
    library.def(
        "activation_meet(Tensor kept, Tensor u, Tensor xdot, int kind, float[] settings, bool push) -> Tensor[]");
    // phi' d + phi'' w or, if `below`, phi' d + (phi'' / phi') w.
    library.def("activation_bend(Tensor kept, Tensor? d, Tensor w, int kind, float[] settings, bool below) -> Tensor");
    // y = phi(max z) over windows of images [.., H, W] with a piecewise linear phi (common/max_pool.h). options: pairs of
    // the windows' height and width, of their steps and of their margins, of z's and of y's; whether the images lie
    // channels last, without gaps, instead of as they are. Returns y and what the sweeps need, both in this layout.
    library.def("max_pool(Tensor z, int[] options, int kind, float[] settings) -> (Tensor, Tensor)");
    // phi' xdot of the winners, and its transpose, for stacks [K, ...].
    library.def("max_pool_push(Tensor code, Tensor xdot, int[] options, int kind, float[] settings) -> Tensor");
    library.def("max_pool_pull(Tensor code, Tensor u, int[] options, int kind, float[] settings) -> Tensor");
    // y = A phi(z) for averages A over windows (common/average_pool.h). options: those of maxima; whether margins count;
    // the divisor of all windows, or 0. Returns y and, of a piecewise linear phi, a mask, which is kept instead of z.
    library.def("average_pool(Tensor z, int[] options, int kind, float[] settings) -> (Tensor, Tensor)");
    // A phi' xdot for a stack; its transpose plus, if given, phi'' second; and sum_k (A^T u^k) xdot^k.
    library.def("average_pool_push(Tensor kept, Tensor xdot, int[] options, int kind, float[] settings) -> Tensor");
    library.def(
        "average_pool_pull(Tensor kept, Tensor u, Tensor? second, int[] options, int kind, float[] settings) -> "
        "Tensor");
    library.def("average_pool_meet(Tensor u, Tensor xdot, int[] options, int kind, float[] settings) -> Tensor");
    // Normalisations with statistics of channels (cpu/norm.h, cuda/norm.h) at x [B, C, ...], which lies as it is or
    // channels last, as do all others. mean and inverse: [C] of the batch, or [B, groups] of each sample; weight: [C];
    // all in float32 where x is in less. For a stack v [K, B, C, ...] returns J v if `push`, else J^T v plus `second`
    // if given, and if wanted (K = 1) the gradients by weight and bias [2, C]: sums of v xhat and of v.
    library.def(
        "norm_project(Tensor v, Tensor x, Tensor mean, Tensor inverse, Tensor? weight, Tensor? second, bool push, "
        "bool gradients) -> Tensor[]");
    // The gradients of sum_k <u^k, J v^k> by x and by the weight and, if wanted, J v.
    library.def(
        "norm_meet(Tensor u, Tensor v, Tensor x, Tensor mean, Tensor inverse, Tensor? weight, bool push) -> Tensor[]");
    // The same two for normalisations over rows (cuda/layer_norm.h), without gaps, as many as `inverse` has numbers;
    // without mean: root mean square normalisation. Without weight its gradient is empty.
    library.def(
        "layer_norm_project(Tensor v, Tensor x, Tensor? mean, Tensor inverse, Tensor? weight, Tensor? second, "
        "bool push, bool gradients) -> Tensor[]");
    library.def(
        "layer_norm_meet(Tensor u, Tensor v, Tensor x, Tensor? mean, Tensor inverse, Tensor? weight, bool push) -> "
        "Tensor[]");
    // Passes over contiguous stacks [K, B, ...] (cuda/rows.h): sum_k <a^k_b, b^k_b>, [B], in float32 at least; and
    // factor_b a^k_b, times b^k_b if given.
    library.def("dot_samples(Tensor a, Tensor b) -> Tensor");
    library.def("scale_samples(Tensor a, Tensor? b, Tensor factor) -> Tensor");
    // phi, phi' and phi'' of an activation at z.
    library.def("activation(Tensor z, int kind, float[] settings) -> (Tensor, Tensor, Tensor)");
}
