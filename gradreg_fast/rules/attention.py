r"""Attention: scaled dot products in closed form, a block of queries at a time, in memory linear in the length.

Per query, with ``S = scale q k^T + mask``, ``P = softmax(S)``, ``O = P v``, the cotangent u of O and sums over keys:

    A = u v^T,  C = A - sum P A,  G = P C:                 u_q = scale G k,  u_k = scale G^T q,  u_v = P^T u
    Sdot = scale (qdot k^T + q kdot^T),  Pdot = P (Sdot - sum P Sdot):               Odot = Pdot v + P vdot
    <u, Odot> = sum G Sdot + sum P (u vdot^T);  with  T = Pdot C + P (u vdot^T)  and  Q = T - P sum T  its derivatives
    are  scale (G kdot + Q k)  for q,  scale (G^T qdot + Q^T q)  for k,  Pdot^T u  for v  and  Q  for the mask

Where keys are many, only q, k and v are kept: each sweep computes P anew, for all keys of a few queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, members_of, stacked
from gradreg_fast.rules.call import FUNCTIONS, Call, Parameter, Several, function, module, submodule
from gradreg_fast.rules.constant import as_value
from gradreg_fast.rules.index import select
from gradreg_fast.rules.linear import linear
from gradreg_fast.rules.merge import AddParameter, Affine, add, unbroadcast
from gradreg_fast.rules.merge import dropout as dropped
from gradreg_fast.rules.product import matmul, mul
from gradreg_fast.rules.shape import LinearMap, permuting, reshaping
from gradreg_fast.rules.softmax import Softmax

aten = torch.ops.aten

BLOCK_BYTES = 2**19  # of a block of P: it and its companions stay in a core's cache
KEPT_KEYS = 4  # for each feature of a query, at most, for P to be kept: then it is no larger than q, k and v, or nearly
LEAST_ROWS = 32  # of a block, however long: smaller products run too far below a large one's rate


class Attention(Rule):
    """``softmax(scale q k^T + mask) v`` of ``q [..., L, E]``, ``k [..., S, E]``, ``v [..., S, F]``, as PyTorch's.

    The only parameter is the mask ``[..., L, S]`` or None: true where a key takes part, or added to S.

    Args:
        causal: whether query i sees the keys up to i only.
        scale: None for ``1 / sqrt(E)``.
        grouped: whether a head of keys and values serves several consecutive heads of queries.
    """

    curvature_free = False

    def __init__(self, causal: bool = False, scale: float | None = None, grouped: bool = False) -> None:
        self.causal = causal
        self.scale = scale
        self.grouped = grouped

    def couples(self, dims):
        return dims < 3

    def forward(self, inputs, parameters, extras):
        q, k, v = inputs
        shapes = tuple(x.shape for x in inputs)
        blocks = Blocks(self, (shapes, None, None, None), parameters[0])
        matrices = blocks.q, blocks.k, blocks.v = blocks.of_operands(inputs)
        if k.shape[-2] <= KEPT_KEYS * q.shape[-1]:
            y = P = None
            for block in blocks:
                P = block.put(block.P, block.scores, P, blocks.k.shape[1])
                y = block.put(torch.bmm(block.P, blocks.v[block.keys]), block.queries, y, blocks.v.shape[2])
            return blocks.like_result(y), (shapes, *matrices, P)
        y = functional.scaled_dot_product_attention(
            q, k, v, parameters[0], 0.0, self.causal, scale=self.scale, enable_gqa=self.grouped
        )
        return y, (shapes, *matrices)

    def pull(self, saved, parameters, u):
        blocks = Blocks(self, saved, parameters[0])
        members = [(blocks.of_result(member), [None] * 3) for member in members_of(u)]
        for block in blocks:
            q, k, v = block.operands()
            for cotangent, sums in members:
                cotangent = cotangent[block.queries]
                G = softmax_derivative(torch.bmm(cotangent, v.mT), block.P)
                block.add(sums, (G, k, blocks.scale), (G, q, blocks.scale), (block.P, cotangent, 1))
        pulled = [blocks.like_operands(sums) for _, sums in members]
        return tuple(stacked(column) for column in zip(*pulled, strict=True))

    def push(self, saved, parameters, xdots):
        return self.meet(saved, parameters, None, xdots, None, True)[1]

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        blocks = Blocks(self, saved, parameters[0])
        tangents = [blocks.of_operands(members) for members in zip(*map(members_of, xdots), strict=True)]
        cotangents = [None] * len(tangents) if u is None else [blocks.of_result(member) for member in members_of(u)]
        results = [None] * len(tangents)
        second = None if u is None else [None] * 3
        mask = blocks.zero_mask() if u is not None and gradients.wants(0) else None
        for block in blocks:
            (q, k, v), P = block.operands(), block.P
            for j, (members, cotangent) in enumerate(zip(tangents, cotangents, strict=True)):
                qdot, kdot, vdot = block.operands(members)
                Sdot = torch.bmm(qdot, k.mT).baddbmm_(q, kdot.mT).mul_(blocks.scale)
                Pdot = softmax_derivative(Sdot, P)
                if push:
                    results[j] = block.put(torch.bmm(Pdot, v).baddbmm_(P, vdot), block.queries, results[j], v.shape[2])
                if cotangent is not None:
                    Q = self._second(block, Pdot, cotangent[block.queries], (qdot, kdot, vdot), second)
                    if mask is not None:
                        blocks.add_to_mask(mask, block, Q)
        if mask is not None:
            gradients.add(0, lambda: mask.view(blocks.mask_shape).sum_to_size(parameters[0].shape))
        terms = (None,) * 3 if second is None else blocks.like_operands(second)
        return terms, stacked([blocks.like_result(result) for result in results]) if push else None

    def gradient(self, saved, parameters, d, gradients):
        if not gradients.wants(0):
            return
        blocks = Blocks(self, saved, parameters[0])
        mask, u = blocks.zero_mask(), blocks.of_result(d)
        for block in blocks:
            _, _, v = block.operands()
            blocks.add_to_mask(mask, block, softmax_derivative(torch.bmm(u[block.queries], v.mT), block.P))
        gradients.add(0, lambda: mask.view(blocks.mask_shape).sum_to_size(parameters[0].shape))

    def flops(self, parameters, shape, inputs):
        (*_, E), (*_, S, _) = inputs[:2]
        return 2 * shape.numel() // shape[-1] * S * (E + shape[-1])

    def _second(self, block: Block, Pdot: Tensor, u: Tensor, tangents: Sequence[Tensor], second: Sums) -> Tensor:
        """Add a block's second-order terms; Q."""
        (q, k, v), P, scale, (qdot, kdot, vdot) = block.operands(), block.P, block.blocks.scale, tangents
        A = torch.bmm(u, v.mT)
        C = A.sub_((P * A).sum(-1, keepdim=True))
        G = P * C
        T = torch.bmm(u, vdot.mT).mul_(P).addcmul_(Pdot, C)
        Q = T.addcmul_(P, T.sum(-1, keepdim=True), value=-1)
        block.add(second, (G, kdot, scale), (G, qdot, scale), (Pdot, u, 1))
        block.add(second, (Q, k, scale), (Q, q, scale))
        return Q


Index = type(...) | tuple[slice, ...]
Sums = list[Tensor | None]


@dataclass(frozen=True)
class Block:
    """Some queries of some matrices, with the keys that they see; if there is but one block, every index is ``...``.

    Attributes:
        blocks: which it is one of.
        queries: index into queries.
        keys: index into keys and values.
        scores: index into all of P.
        P: of the block.
    """

    blocks: Blocks
    queries: Index
    keys: Index
    scores: Index
    P: Tensor

    def operands(self, matrices: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The block's queries, keys and values, or what is given for all of them."""
        q, k, v = (self.blocks.q, self.blocks.k, self.blocks.v) if matrices is None else matrices
        return (q, k, v) if self.queries is ... else (q[self.queries], k[self.keys], v[self.keys])

    def put(self, part: Tensor, index: Index, whole: Tensor | None, features: int) -> Tensor:
        """The whole ``[N, L, features]``, None at first, with the block's part."""
        if index is ...:
            return part
        whole = part.new_empty(*self.blocks.q.shape[:2], features) if whole is None else whole
        whole[index] = part
        return whole

    def add(self, sums: Sums, *products: tuple[Tensor, Tensor, float]) -> None:
        """Add ``scale M x`` to the queries' sum, ``scale M^T x`` to the keys' and to the values'; None at first."""
        for j, (M, x, scale) in enumerate(products):
            M, like = M.mT if j else M, (self.blocks.q, self.blocks.k, self.blocks.v)[j]
            if self.queries is ...:
                at_first = sums[j] is None
                sums[j] = torch.baddbmm(like if at_first else sums[j], M, x, beta=1 - at_first, alpha=scale)
                continue
            sums[j] = torch.zeros_like(like) if sums[j] is None else sums[j]
            sums[j][self.keys if j else self.queries].baddbmm_(M, x, alpha=scale)


class Blocks:
    """The operands as matrices ``[N, length, features]``, all leading dimensions in one; iterates over blocks of P."""

    def __init__(self, rule: Attention, saved: Sequence[Tensor], mask: Tensor | None) -> None:
        self.shapes, self.q, self.k, self.v, *self.kept = saved
        heads = [shape[-3] if rule.grouped else 1 for shape in self.shapes]
        self.repeats = [heads[0] // number for number in heads]
        repeated = zip(self.shapes, self.repeats, strict=True)
        leading = [(*shape[:-3], shape[-3] * n) if n > 1 else shape[:-2] for shape, n in repeated]
        same = all(shape == leading[0] for shape in leading)  # broadcast_shapes is slow
        self.leading = leading[0] if same else torch.broadcast_shapes(*leading)
        self.broadcasts = not same or any(n > 1 for n in self.repeats)
        self.causal = rule.causal
        self.scale = self.shapes[0][-1] ** -0.5 if rule.scale is None else rule.scale
        self.mask = None
        if mask is not None:
            L, S = self.shapes[0][-2], self.shapes[1][-2]
            leading = self.leading if math.prod(mask.shape[:-2]) > 1 else ()
            self.mask_shape = (*leading, L, S)
            self.mask = mask.expand(self.mask_shape).reshape(-1, L, S)

    def __iter__(self) -> Iterator[Block]:
        (N, L, _), S = self.q.shape, self.k.shape[1]
        row = S * self.q.element_size()
        rows = min(L, max(LEAST_ROWS, BLOCK_BYTES // max(1, row)))
        matrices = max(1, BLOCK_BYTES // max(1, rows * row))
        if matrices >= N and rows >= L:  # nothing to cut: indexing costs as much as a small product
            yield Block(self, ..., ..., ..., self.kept[0] if self.kept else self._probabilities(..., ..., L))
            return
        for first in range(0, N, matrices):
            for start in range(0, L, rows):
                stop = min(L, start + rows)
                queries = slice(first, first + matrices), slice(start, stop)
                keys = queries[0], slice(0, min(S, stop) if self.causal else S)
                scores = *queries, keys[1]
                P = self.kept[0][scores] if self.kept else self._probabilities(queries, keys, stop)
                yield Block(self, queries, keys, scores, P)

    def _probabilities(self, queries: Index, keys: Index, stop: int) -> Tensor:
        """P of queries up to `stop`."""
        scores = torch.bmm(self.q[queries], self.k[keys].mT).mul_(self.scale)
        if self.causal:
            rows = torch.arange(stop - scores.shape[1], stop, device=scores.device)
            scores.masked_fill_(torch.arange(scores.shape[2], device=scores.device) > rows.unsqueeze(1), -math.inf)
        if self.mask is None:
            return torch.softmax(scores, -1)
        mask = self._masked(self.mask, queries, keys)
        scores = scores.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else scores.add_(mask)
        return aten._safe_softmax(scores, -1)  # zeros where no key takes part

    def _masked(self, mask: Tensor, queries: Index, keys: Index) -> Tensor:
        """A block's part of a mask ``[N or 1, L, S]``."""
        return mask if queries is ... else mask[slice(None) if len(mask) == 1 else queries[0], queries[1], keys[1]]

    def zero_mask(self) -> Tensor:
        """Room for the mask's gradient."""
        return torch.zeros_like(self.mask)

    def add_to_mask(self, mask: Tensor, block: Block, scores: Tensor) -> None:
        """Add a block's part of the mask's gradient."""
        part = self._masked(mask, block.queries, block.keys)
        part += scores.sum_to_size(part.shape)

    def of_operands(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """Three tensors shaped like the operands, or stacks of one such, as matrices."""
        if not self.broadcasts:
            return [x.reshape(-1, *x.shape[-2:]) for x in operands]
        operands = [x.reshape(shape) for x, shape in zip(operands, self.shapes, strict=True)]
        repeated = [self._repeated(x, j) for j, x in enumerate(operands)]
        return [x.expand(*self.leading, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in repeated]

    def like_operands(self, matrices: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What `of_operands` made, back, summed over what it repeated."""
        if not self.broadcasts:
            return tuple(x.view(shape) for x, shape in zip(matrices, self.shapes, strict=True))
        results = []
        for x, shape, repeats in zip(matrices, self.shapes, self.repeats, strict=True):
            x = x.view(*self.leading, *x.shape[-2:])
            if repeats > 1:
                x = x.unflatten(-3, (-1, repeats)).sum(-3)
            results.append(x.sum_to_size(shape))
        return tuple(results)

    def of_result(self, y: Tensor) -> Tensor:
        """A tensor shaped like the result as matrices."""
        return y.reshape(-1, *y.shape[-2:])

    def like_result(self, matrices: Tensor) -> Tensor:
        """Matrices in the result's shape."""
        return matrices.view(*self.leading, *matrices.shape[-2:])

    def _repeated(self, x: Tensor, j: int) -> Tensor:
        return x if self.repeats[j] == 1 else x.repeat_interleave(self.repeats[j], -3)


def softmax_derivative(v: Tensor, P: Tensor) -> Tensor:
    """``P (v - sum P v)``, for cotangents and tangents alike."""
    return aten._softmax_backward_data(v, P, -1, P.dtype)


class Masked(AddParameter):
    """Scores ``[..., heads, L, S]`` plus a mask, or minus infinity where it excludes; elsewhere they keep their slope.

    Args:
        view: called with the mask and the scores' shape; the mask so that it broadcasts.
        excludes: what a mask of truth values says of a key: that it takes no part, or that it does.
    """

    def __init__(self, view: Callable[[Tensor, torch.Size], Tensor], excludes: bool) -> None:
        super().__init__()
        self.view = view
        self.excludes = excludes

    def forward(self, inputs, parameters, extras):
        (scores,) = inputs
        mask = self.view(parameters[0], scores.shape)
        if mask.dtype == torch.bool:
            y = scores.masked_fill(mask if self.excludes else ~mask, -math.inf)
        else:
            y = scores + mask
        return y, (scores.shape, y.shape)

    def gradient(self, saved, parameters, d, gradients):
        (mask,) = parameters
        gradients.add(0, lambda: unbroadcast(d.unsqueeze(0), self.view(mask, d.shape).shape).reshape(mask.shape))


class Causal(Affine):
    """Scores ``[..., L, S]``, minus infinity where a key comes after the query; elsewhere they keep their slope."""

    def forward(self, inputs, parameters, extras):
        (scores,) = inputs
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, -math.inf), ()


class SafeSoftmax(Softmax):
    """Over keys, with zeros where none takes part."""

    def forward(self, inputs, parameters, extras):
        (y,) = inputs
        p = aten._safe_softmax(y, self.dim)
        return p, (p, y.dim() - 1)


def written_out(query, key, value, masks: Sequence[tuple], dropout: float, causal: bool, scale, softmax):
    """Attention as products of matrices, with all its probabilities: they may be dropped, and masked in any way.

    Masks are pairs of a rule that takes the mask for its parameter, or None if it is a value, and of the mask.
    """
    if scale is None:
        rule = LinearMap(lambda q: q * q.shape[-1] ** -0.5, lambda u, shape: u * shape[-1] ** -0.5, ())
        query = Call(rule, (query,))
    else:
        query = mul(query, scale)
    scores = matmul(query, permuting(torch.transpose, key, -2, -1))
    for rule, mask in masks:
        if rule is not None:
            scores = Call(rule, (scores,), (mask,))
        elif mask is not None:
            scores = add(scores, mask)
    if causal:
        scores = Call(Causal(), (scores,))
    return matmul(dropped(Call(softmax(-1), (scores,)), dropout), value)


@function(functional.scaled_dot_product_attention)
def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    given = attn_mask is None or isinstance(attn_mask, Parameter)
    if given and not dropout_p:
        return Call(Attention(is_causal, scale, enable_gqa), (query, key, value), (attn_mask,))
    if enable_gqa:
        return "it drops probabilities of grouped heads, or its mask is computed"
    rule = Masked(lambda mask, shape: mask, excludes=False) if given and attn_mask is not None else None
    return written_out(query, key, value, [(rule, attn_mask)], dropout_p, is_causal, scale, SafeSoftmax)


@module(nn.MultiheadAttention)
def multihead_attention(
    layer,
    query,
    key,
    value,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    average_attn_weights=True,
    is_causal=False,
    *,
    parameter,
):
    if layer.bias_k is not None or layer.add_zero_attn:
        return "it adds keys"
    if any(mask is not None and not isinstance(mask, Parameter) for mask in (key_padding_mask, attn_mask)):
        return "its masks are no constants"

    def weights(number):
        return "its weights are used" if number else result

    if query == key == value and layer._qkv_same_embed_dim:
        joint = linear(query, parameter("in_proj_weight"), parameter("in_proj_bias"))
        parts = permuting(torch.movedim, in_heads(layer, joint, 3), -4, 0)
        heads = [select(parts, 0, j) for j in range(3)]
    else:
        heads = [
            in_heads(layer, linear(as_value(x), *projection(layer, parameter, j)))
            for j, x in enumerate((query, key, value))
        ]
    dropout = layer.dropout if layer.training else 0.0
    if dropout or key_padding_mask is not None or attn_mask is not None:
        masks = [
            (Masked(partial(of_heads, layer.num_heads), excludes=True), attn_mask),
            (Masked(of_keys, excludes=True), key_padding_mask),
        ]
        masks = [(rule, mask) for rule, mask in masks if mask is not None]
        mixed = written_out(*heads, masks, dropout, False, None, Softmax if need_weights else SafeSoftmax)
    else:
        mixed = attention(*heads)
    merged = reshaping(torch.flatten, permuting(torch.movedim, mixed, -2, -3 if layer.batch_first else 0), -2)
    result = linear(merged, parameter("out_proj.weight"), parameter("out_proj.bias"))
    return Several(weights, result)


def projection(layer, parameter, j):
    """The weight and the bias of the queries', keys' or values' projection."""

    def own(joint):
        return joint.chunk(3)[j]

    weight = parameter("in_proj_weight", own) if layer._qkv_same_embed_dim else parameter(f"{'qkv'[j]}_proj_weight")
    return weight, parameter("in_proj_bias", own)


def in_heads(layer, features, *parts):
    """``[..., L, parts E]`` as ``[parts, ..., heads, L, E / heads]``; the length comes first, or behind the batch."""
    heads = reshaping(torch.unflatten, features, -1, (*parts, layer.num_heads, layer.head_dim))
    return permuting(torch.movedim, heads, -3 - len(parts) if layer.batch_first else 0, -2)


def of_heads(heads: int, mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask ``[L, S]`` or ``[B heads, L, S]`` as one of scores ``[B, heads, L, S]``."""
    return mask if mask.dim() == 2 else mask.view(*shape[:-3], heads, *mask.shape[1:])


def of_keys(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask ``[B, S]`` or ``[S]`` of keys as one of scores."""
    return mask if mask.dim() == 1 else mask[:, None, None]


@module(nn.TransformerEncoderLayer)
def encoder_layer(layer, x, src_mask=None, src_key_padding_mask=None, is_causal=False, *, parameter):
    attend = attended(layer, parameter, "self_attn", "dropout1", src_mask, src_key_padding_mask)
    return in_turn(layer, parameter, x, [lambda x: attend(x, x)])


@module(nn.TransformerDecoderLayer)
def decoder_layer(
    layer,
    tgt,
    memory,
    tgt_mask=None,
    memory_mask=None,
    tgt_key_padding_mask=None,
    memory_key_padding_mask=None,
    tgt_is_causal=False,
    memory_is_causal=False,
    *,
    parameter,
):
    attend = attended(layer, parameter, "self_attn", "dropout1", tgt_mask, tgt_key_padding_mask)
    look_up = attended(layer, parameter, "multihead_attn", "dropout2", memory_mask, memory_key_padding_mask)
    return in_turn(layer, parameter, tgt, [lambda x: attend(x, x), lambda x: look_up(x, memory)])


def attended(layer, parameter, attention, dropout, mask, padding):
    """A layer's attention of x to something, with its dropout."""

    def attend(x, to):
        several = submodule(
            layer, attention, parameter, x, to, to, attn_mask=mask, key_padding_mask=padding, need_weights=False
        )
        if isinstance(several, str):
            return several
        if not getattr(layer, attention).batch_first:
            return submodule(layer, dropout, parameter, several.call)
        # PyTorch's result has its length first in memory, and a dropout draws in that order
        return permuting(length_first, submodule(layer, dropout, parameter, permuting(length_first, several.call)))

    return attend


def length_first(x: Tensor) -> Tensor:
    """``[B, L, E]`` as ``[L, B, E]``, and back; ``[L, E]`` as it is."""
    return x.transpose(0, 1) if x.dim() == 3 else x


def in_turn(layer, parameter, x, attentions: Sequence[Callable]):
    """A transformer's layer: attentions and then the feed-forward network, each with its residual and its norm."""
    activation = FUNCTIONS.get(layer.activation)
    if activation is None:
        return "its activation has no rule"

    def part(name, x):
        return submodule(layer, name, parameter, x)

    def feed_forward(x):
        hidden = activation(part("linear1", x))
        return part(f"dropout{len(attentions) + 1}", part("linear2", part("dropout", hidden)))

    for i, block in enumerate((*attentions, feed_forward)):
        norm = f"norm{i + 1}"
        change = block(part(norm, x) if layer.norm_first else x)
        if isinstance(change, str):
            return change
        x = add(x, change)
        x = x if layer.norm_first else part(norm, x)
    return x


@module(nn.TransformerEncoder)
def encoder(stack, x, mask=None, src_key_padding_mask=None, is_causal=None, *, parameter):
    return stacked_layers(stack, encoder_layer, x, parameter, src_mask=mask, src_key_padding_mask=src_key_padding_mask)


@module(nn.TransformerDecoder)
def decoder(stack, tgt, memory, *, parameter, tgt_is_causal=None, memory_is_causal=False, **masks):
    return stacked_layers(stack, partial(decoder_layer, memory=memory), tgt, parameter, **masks)


def stacked_layers(stack, entry: Callable, x, parameter, **masks):
    """A transformer's layers, one after the other."""
    for i, layer in enumerate(stack.layers):
        own = partial(lambda i, of, *function: parameter(f"layers.{i}.{of}", *function), i)
        x = entry(layer, x, parameter=own, **masks)
        if isinstance(x, str):
            return x
    return x if stack.norm is None else submodule(stack, "norm", parameter, x)
