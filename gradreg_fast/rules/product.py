"""Products and quotients of branches and parameters: elementwise, of matrices, by Einstein's notation."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.activation import sigmoid
from gradreg_fast.rules.base import Rule, dot_stacks
from gradreg_fast.rules.call import Call, Parameter, function, is_real, module
from gradreg_fast.rules.index import cutting
from gradreg_fast.rules.merge import Affine, add, broadcastable, combine, sub, unbroadcast
from gradreg_fast.rules.pointwise import smooth


class Multilinear(Rule):
    """A function of several operands, linear in each; a subclass gives its value and its derivatives' transposes.

    ``ydot`` is the sum of the values with one operand replaced by its tangent, and ``<u, ydot>`` depends on operand j
    through those where another one is replaced.

    Args:
        places: for each operand, whether it is a parameter.
    """

    def __init__(self, places: Sequence[bool]) -> None:
        self.places = tuple(places)
        self.input_places = [j for j, place in enumerate(places) if not place]
        self.parameter_places = [j for j, place in enumerate(places) if place]
        self.curvature_free = len(self.input_places) < 2

    def value(self, operands: Sequence[Tensor]) -> Tensor:
        """``y``."""
        raise NotImplementedError

    def replaced(self, operands: Sequence[Tensor], j: int, xdot: Tensor, shape: torch.Size) -> Tensor:
        """``y [K, ...]`` with a stack for operand j; `shape` is that of y."""
        raise NotImplementedError

    def transposed(self, operands: Sequence[Tensor], j: int, u: Tensor) -> Tensor:
        """The stack ``[K, ...]`` like operand j whose product with it is ``<u, y>``."""
        raise NotImplementedError

    def crossed(self, operands: Sequence[Tensor], j: int, u: Tensor, i: int, xdot: Tensor) -> Tensor:
        """``sum_k transposed(u^k)`` with ``xdot^k`` for operand i, like operand j: fresh."""
        raise NotImplementedError

    def forward(self, inputs, parameters, extras):
        y = self.value(self._operands(inputs, parameters))
        return y, (*inputs, y.shape)

    def pull(self, saved, parameters, u):
        operands = self._operands(saved, parameters)
        return tuple([self.transposed(operands, j, u) for j in self.input_places])

    def push(self, saved, parameters, xdots):
        operands, shape = self._operands(saved, parameters), saved[-1]
        first, *others = [self.replaced(operands, *pair, shape) for pair in zip(self.input_places, xdots, strict=True)]
        return sum(others, first)

    def curvature(self, saved, parameters, u, xdots, gradients):
        operands = self._operands(saved, parameters)
        tangents = dict(zip(self.input_places, xdots, strict=True))

        def crossings(j: int) -> Tensor | None:
            parts = [self.crossed(operands, j, u, i, xdot) for i, xdot in tangents.items() if i != j]
            return sum(parts[1:], parts[0]) if parts else None

        for position, j in enumerate(self.parameter_places):
            gradients.add(position, lambda j=j: crossings(j))
        return tuple([crossings(j) for j in self.input_places])

    def gradient(self, saved, parameters, d, gradients):
        operands = self._operands(saved, parameters)
        for position, j in enumerate(self.parameter_places):
            gradients.add(position, lambda j=j: self.transposed(operands, j, d.unsqueeze(0)).squeeze(0))

    def _operands(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        if not self.parameter_places:
            return inputs[: len(self.places)]
        values, constants = iter(inputs), iter(parameters)
        return [next(constants) if place else next(values) for place in self.places]


class Product(Multilinear):
    """``a b``, shapes broadcast."""

    def value(self, operands):
        a, b = operands
        return a * b

    def replaced(self, operands, j, xdot, shape):
        return broadcastable(xdot, len(shape)) * operands[1 - j]

    def transposed(self, operands, j, u):
        return unbroadcast(u * operands[1 - j], operands[j].shape)

    def adjoint(self, saved, parameters, d, second):
        operands = self._operands(saved, parameters)
        if d is None or second is None or any(operand.shape != d.shape for operand in operands):
            return super().adjoint(saved, parameters, d, second)
        others = (operands[1 - j] for j in self.input_places)
        return [d * other if s is None else s.addcmul_(d, other) for s, other in zip(second, others, strict=True)]

    def crossed(self, operands, j, u, i, xdot):
        product = dot_stacks(u, broadcastable(xdot, u.dim() - 1))
        return unbroadcast(product.unsqueeze(0), operands[j].shape).squeeze(0)


class MatrixProduct(Multilinear):
    """``A B`` of (stacks of) matrices and vectors, as `torch.matmul`."""

    def value(self, operands):
        return torch.matmul(*operands)

    def replaced(self, operands, j, xdot, shape):
        matrices = as_matrices(*operands)
        matrices[j] = broadcastable(as_matrix(xdot, j, 1), dims_of(matrices))
        ydot = torch.matmul(*matrices)
        return ydot if ydot.shape[1:] == shape else ydot.reshape(xdot.shape[0], *shape)

    def flops(self, parameters, shape, inputs):
        first = parameters[0].shape if self.places[0] else inputs[0]
        return 2 * shape.numel() * first[-1]

    def transposed(self, operands, j, u):
        a, b = matrices = as_matrices(*operands)
        u = stack_for(matrices, operands, u)
        if j == 1 and b.dim() == 2 and u.shape[0] == 1:  # one product over all rows
            return (a.reshape(-1, a.shape[-1]).mT @ u.reshape(-1, u.shape[-1])).reshape(1, *operands[1].shape)
        stack = unbroadcast(u @ b.mT, a.shape) if j == 0 else unbroadcast(a.mT @ u, b.shape)
        return stack if matrices[j] is operands[j] else stack.reshape(u.shape[0], *operands[j].shape)

    def crossed(self, operands, j, u, i, xdot):
        a, b = matrices = as_matrices(*operands)
        xdot = broadcastable(as_matrix(xdot, i, 1), dims_of(matrices))
        u = stack_for(matrices, operands, u)
        if j == 1 and b.dim() == 2:
            return (xdot.reshape(-1, a.shape[-1]).mT @ u.reshape(-1, u.shape[-1])).reshape(operands[1].shape)
        product = u @ xdot.mT if j == 0 else xdot.mT @ u
        product = product if product.shape[0] == 1 else product.sum(0, keepdim=True)
        return unbroadcast(product, matrices[j].shape).reshape(operands[j].shape)


class Einsum(Multilinear):
    """``torch.einsum``, where no operand repeats a letter and every letter is in another operand or in the result.

    Args:
        subscripts: of each operand.
        result: of the result.
    """

    def __init__(self, places: Sequence[bool], subscripts: Sequence[str], result: str) -> None:
        super().__init__(places)
        self.subscripts = subscripts
        self.result = result

    def value(self, operands):
        return torch.einsum(f"{','.join(self.subscripts)}->{self.result}", *operands)

    def replaced(self, operands, j, xdot, shape):
        return self._sum(operands, {j: xdot}, "Z" + self.result)

    def transposed(self, operands, j, u):
        return self._like(operands[j], self._sum(operands, {}, "Z" + self.subscripts[j], j, u), 1)

    def crossed(self, operands, j, u, i, xdot):
        return self._like(operands[j], self._sum(operands, {i: xdot}, self.subscripts[j], j, u), 0)

    def _sum(self, operands, stacks: dict, result: str, without: int | None = None, u: Tensor | None = None) -> Tensor:
        """The sum with stacks for some operands and, in place of operand `without`, the cotangents; Z counts stacks."""
        terms = [("Z" + self.result, u)] if u is not None else []
        for j, (subscript, operand) in enumerate(zip(self.subscripts, operands, strict=True)):
            if j != without:
                terms.append(("Z" + subscript, stacks[j]) if j in stacks else (subscript, operand))
        return torch.einsum(f"{','.join(subscript for subscript, _ in terms)}->{result}", *(x for _, x in terms))

    def _like(self, operand: Tensor, result: Tensor, stacked: int) -> Tensor:
        """Where dimensions of size one were broadcast, sum over them."""
        return result.sum_to_size(*result.shape[:stacked], *operand.shape)

    def flops(self, parameters, shape, inputs):
        given = self._operands(inputs, [p.shape for p in parameters])
        sizes = {}
        for subscript, operand in zip((*self.subscripts, self.result), (*given, shape), strict=True):
            before, _, after = subscript.partition("...")
            named = zip(before + after, (*operand[: len(before)], *operand[len(operand) - len(after) :]), strict=True)
            sizes.update({letter: max(size, sizes.get(letter, 1)) for letter, size in named})
        summed = math.prod(size for letter, size in sizes.items() if letter not in self.result)
        return 2 * shape.numel() * summed if len(given) > 1 else 0


class Bilinear(Einsum):
    """``x_1^T W_o x_2`` for each output o, which autocast does not cast down."""


class Quotient(Rule):
    """``y = a / b``, shapes broadcast: ``ydot = (adot - y bdot) / b``."""

    curvature_free = False

    def forward(self, inputs, parameters, extras):
        a, b = inputs
        y = a / b
        return y, (a.shape, b, y)

    def pull(self, saved, parameters, u):
        shape, b, y = saved
        u_a = u / b
        return unbroadcast(u_a, shape), unbroadcast(-u_a * y, b.shape)

    def push(self, saved, parameters, xdots):
        _, b, y = saved
        adot, bdot = (broadcastable(xdot, y.dim()) for xdot in xdots)
        return (adot - y * bdot) / b

    def curvature(self, saved, parameters, u, xdots, gradients):
        shape, b, y = saved
        adot, bdot = (broadcastable(xdot, y.dim()) for xdot in xdots)
        u = u / b.square()
        a_second = -dot_stacks(u, bdot)
        b_second = -dot_stacks(u, adot) - 2 * y * a_second
        return tuple(
            unbroadcast(t.unsqueeze(0), like).squeeze(0) for t, like in ((a_second, shape), (b_second, b.shape))
        )


class QuotientByParameter(Rule):
    """``x / p`` with a parameter p, shapes broadcast: linear in x."""

    def forward(self, inputs, parameters, extras):
        (x,), (p,) = inputs, parameters
        y = x / p
        return y, (x, y.shape)

    def pull(self, saved, parameters, u):
        return (unbroadcast(u / parameters[0], saved[0].shape),)

    def push(self, saved, parameters, xdots):
        return broadcastable(xdots[0], len(saved[1])) / parameters[0]

    def curvature(self, saved, parameters, u, xdots, gradients):
        gradients.add(0, lambda: self._slope(dot_stacks(u, broadcastable(xdots[0], u.dim() - 1)), parameters[0]))
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: self._slope(d * saved[0], parameters[0]))

    def _slope(self, product: Tensor, p: Tensor) -> Tensor:
        return unbroadcast((product / p.square()).neg_().unsqueeze(0), p.shape).squeeze(0)


def as_matrix(operand: Tensor, position: int, stacked: int = 0) -> Tensor:
    """A vector operand of `torch.matmul` as the matrix that it stands for: a row on the left, a column on the right."""
    if operand.dim() - stacked > 1:
        return operand
    return operand.unsqueeze(-1 if position else -2)


def as_matrices(left: Tensor, right: Tensor) -> list[Tensor]:
    """Both operands of `torch.matmul`, `as_matrix`."""
    return [as_matrix(left, 0), as_matrix(right, 1)]


def stack_for(matrices: Sequence[Tensor], operands: Sequence[Tensor], u: Tensor) -> Tensor:
    """Cotangents of the operands' product as those of the product of the matrices that they stand for."""
    (a, b), (left, right) = matrices, operands
    if a is left and b is right:
        return u
    return u.reshape(u.shape[0], *u.shape[1 : dims_of(matrices) - 1], a.shape[-2], b.shape[-1])


def dims_of(matrices: Sequence[Tensor]) -> int:
    """Of the product of (stacks of) matrices."""
    left, right = matrices
    return max(left.dim(), right.dim())


def multilinear(rule: type[Multilinear], operands: Sequence, *settings) -> Call:
    """A call of such a rule, with its operands where they belong."""
    places = [isinstance(operand, Parameter) for operand in operands]
    values = [operand for operand, place in zip(operands, places, strict=True) if not place]
    constants = [operand for operand, place in zip(operands, places, strict=True) if place]
    return Call(rule(places, *settings), values, constants)


@function(torch.mul, torch.multiply, operator.mul, operator.imul, "mul", "mul_", "multiply")
def mul(input, other):
    for number, value in ((input, other), (other, input)):
        if is_real(number):
            return Call(Affine(number), (value,))
    return multilinear(Product, (input, other))


@function(torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv, "div", "div_", "divide")
def div(input, other):
    if is_real(other):
        return Call(Affine(1 / other), (input,))
    if isinstance(other, Parameter):
        return Call(QuotientByParameter(), (input,), (other,))
    if is_real(input) or isinstance(input, Parameter):
        return mul(input, smooth("reciprocal", other))
    return Call(Quotient(), (input, other))


@function(torch.addcmul, "addcmul", "addcmul_")
def addcmul(input, tensor1, tensor2, *, value=1):
    return combine(input, 1, mul(tensor1, tensor2), value)


@function(torch.addcdiv, "addcdiv", "addcdiv_")
def addcdiv(input, tensor1, tensor2, *, value=1):
    return combine(input, 1, div(tensor1, tensor2), value)


@function(torch.lerp, "lerp", "lerp_")
def lerp(input, end, weight):
    return add(input, mul(sub(end, input), weight))


@function(torch.matmul, torch.bmm, torch.mm, operator.matmul, "matmul", "bmm", "mm")
def matmul(input, other):
    return multilinear(MatrixProduct, (input, other))


@function(torch.addmm, torch.baddbmm, "addmm", "baddbmm")
def addmm(input, left, right, *, beta=1, alpha=1):
    return combine(input, beta, matmul(left, right), alpha)


@function(torch.einsum)
def einsum(equation, *operands):
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = operands[0]
    left, arrow, result = equation.replace(" ", "").partition("->")
    subscripts = left.split(",")
    letters = "".join(subscripts).replace(".", "")
    if not arrow:
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    for j, subscript in enumerate(subscripts):
        own = subscript.replace(".", "")
        elsewhere = result + "".join(other for i, other in enumerate(subscripts) if i != j)
        if "Z" in own or len(set(own)) < len(own) or not set(own) <= set(elsewhere):
            return "its subscripts have no rule"
    if ("..." in left) != ("..." in result):
        return "its subscripts have no rule"
    return multilinear(Einsum, operands, subscripts, result)


@function(functional.bilinear)
def bilinear(input1, input2, weight, bias=None):
    product = multilinear(Bilinear, (input1, weight, input2), ("...i", "oij", "...j"), "...o")
    return product if bias is None else add(product, bias)


@module(nn.Bilinear)
def bilinear_module(layer, input1, input2, parameter):
    return bilinear(input1, input2, parameter("weight"), parameter("bias"))


@function(functional.glu)
def glu(input, dim=-1):
    halves = cutting(torch.chunk, input, 2, dim)
    return mul(halves.member(0), sigmoid(halves.member(1)))


@module(nn.GLU)
def glu_module(layer, x, parameter):
    return glu(x, layer.dim)
