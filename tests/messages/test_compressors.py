"""Compressors: what travels is what is counted, the dense form is the specification's, alpha and omega hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.check import Invalid
from fedsim.layout import Block, Layout
from fedsim.messages import (
    QSGD,
    All,
    BFloat16,
    ByLayer,
    Coder,
    Compressor,
    Float16,
    Float32,
    NaturalCompression,
    RandK,
    RankK,
    Signs,
    StochasticSigns,
    Ternary,
    Threshold,
    TopK,
    Votes,
)
from fedsim.messages.coder import Uniform, bits_of
from fedsim.messages.largest import largest
from fedsim.messages.payload import bits, pack, unpack

LAYOUT = Layout(
    (
        Block("0.weight", (12, 20), "hidden"),
        Block("0.bias", (12,), "vector"),
        Block("1.weight", (6, 2, 3, 3), "conv"),
        Block("2.weight", (5, 12), "head"),
    )
)
D = LAYOUT.width
CODERS: list[Coder] = [
    Float32(),
    BFloat16(),
    Float16(),
    NaturalCompression(),
    Signs(),
    StochasticSigns(),
    StochasticSigns(bound=4.0),
    QSGD(),
    QSGD(levels=1),
    Ternary(),
    Votes(),
]
COMPRESSORS: list[Compressor] = [
    *(All(coder) for coder in CODERS),
    *(
        TopK(share, coder)
        for share in (0.02, 0.3)
        for coder in (Float32(), NaturalCompression(), Signs(), QSGD())
    ),
    *(
        RandK(0.1, unbiased, coder)
        for unbiased in (True, False)
        for coder in (Float32(), NaturalCompression())
    ),
    Threshold(0.5),
    RankK(2),
    RankK(1, NaturalCompression()),
    ByLayer(TopK(0.1)),
    ByLayer(TopK(0.1, NaturalCompression())),
    ByLayer(All(Signs())),
    ByLayer(RandK(0.5)),
]


def source(seed: int, rows: int = 1) -> Uniform:
    """Numbers in [0, 1): a stream for each row, the same however many rows there are."""
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(rows)]

    def draw(k: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.stack([torch.rand(k, generator=generator) for generator in generators])
        return as_type(drawn if rows > 1 else drawn[0], dtype)

    return draw


def as_type(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1), or how many times 2^-24 they are."""
    return uniform if dtype == torch.float32 else (uniform * 2**24).to(dtype)


def alone(seed: int, row: int) -> Uniform:
    """The stream of one row of `source`."""
    generator = torch.Generator().manual_seed(1000 * seed + row)
    return lambda k, dtype=torch.float32: as_type(torch.rand(k, generator=generator), dtype)


def vectors(n: int, seed: int = 0) -> Tensor:
    """Rows of unlike sizes, with zeros, equal numbers and a large one."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, D, generator=generator) * torch.logspace(-3, 2, n).unsqueeze(1)
    v[:, ::7] = 0
    v[:, 1::9] = v[:, :1] + 1
    v[0] = 0
    v[-1, 5] = 1e6
    return v


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_dense_form_is_decode_of_encode(compressor: Compressor) -> None:
    v = vectors(6)
    dense = compressor(v, LAYOUT, source(1, 6), source(7))
    for i, row in enumerate(v):
        payload = compressor.encode(row, LAYOUT, alone(1, i), source(7))
        back = compressor.decode(payload, LAYOUT, source(7))
        if isinstance(compressor, RankK):
            # products of factors are those of a library, which sums in another order for many matrices
            torch.testing.assert_close(back, dense[i], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(bits_of(back), bits_of(dense[i]))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_bits_are_what_travels(compressor: Compressor) -> None:
    fields = compressor.fields(LAYOUT)
    for row in vectors(4):
        payload = compressor.encode(row, LAYOUT, source(3), source(7))
        blob = pack(payload, fields)
        assert len(blob) == (compressor.bits(LAYOUT) + 7) // 8
        back = unpack(blob, fields)
        assert back.keys() == payload.keys()
        assert all(np.array_equal(back[name], payload[name]) for name in payload)


def shared(seed: int, rows: int) -> Uniform:
    """Numbers (rows, k) of one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda k, dtype=torch.float32: as_type(torch.rand(rows, k, generator=generator), dtype)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_alpha_and_omega_hold(compressor: Compressor) -> None:
    """Over 4,000 draws, 64 of places, five deviations allowed; hard vectors: flat, a spike, halves between powers.

    The mean of N draws of an unbiased compressor lies sqrt(omega / N) ||v|| away, root mean square: twice is allowed.
    """
    alpha, omega = compressor.alpha(LAYOUT), compressor.omega(LAYOUT)
    spike = torch.full((D,), 1e-3).index_fill(0, torch.tensor(3), 1.0)
    for v in (torch.ones(D), spike, torch.full((D,), 4 / 3), vectors(3)[1]):
        many = v.expand(63, -1).contiguous()
        parts = [compressor(many, LAYOUT, shared(i, 63), source(500 + i)) for i in range(64)]
        off = torch.stack(parts).double() - v.double()
        square = float(v.double().square().sum())
        errors = off.square().sum(2).mean(1) / square
        error, slack = float(errors.mean()), 5 * float(errors.std()) / 8 + 1e-12
        if alpha is not None:
            assert error <= (1 - alpha) * (1 + 1e-6) + slack
        if omega is not None:
            assert error <= omega * (1 + 1e-6) + slack
            independent = 64 if "RandK" in repr(compressor) else off.shape[0] * off.shape[1]
            bias = float(off.mean((0, 1)).square().sum()) / square
            assert bias <= 4 * omega / independent + 1e-12


def test_natural_compression_attains_an_eighth() -> None:
    """E(C(t) - t)^2 / t^2 over [1, 2] is (t - 1)(2 - t) / t^2, at its largest, 1/8, where t = 4/3."""
    t = torch.full((200_000,), 4 / 3)
    error = float((NaturalCompression().round(t, source(2)) - t).square().mean() / (16 / 9))
    assert error == pytest.approx(1 / 8, rel=0.01)


def test_natural_compression_of_extremes() -> None:
    v = torch.tensor([0.0, -0.0, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, 1e-40, 1.0, -2.0])
    out = NaturalCompression().round(v, lambda k, dtype: torch.full((k,), 2**24 - 1, dtype=dtype))
    assert out[:2].tolist() == [0, 0]
    assert out[2:4].tolist() == [2.0**127, -(2.0**127)]
    assert not out[4:7].isfinite().any()
    assert out[7:].tolist() == [2.0**-126, 1, -2]


@pytest.mark.parametrize(
    ("d", "k"), [(10, 3), (1000, 1), (1000, 1000), (40_000, 4000), (40_000, 3), (100_000, 50_000)]
)
@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "constant", "spiky"])
def test_the_largest_are_those_of_a_sort(d: int, k: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(d + k)
    v = torch.randn(3, d, generator=generator)
    v = {
        "normal": v,
        "ties": (2 * v).round(),
        "sorted": v.sort().values,
        "constant": torch.ones_like(v),
        "spiky": torch.where(torch.arange(d) % (d // 100 or 1) == 0, 1e3 * v, v),
    }[kind]
    for row, index in zip(v, largest(v, k), strict=True):
        order = np.argsort(-row.abs().numpy(), kind="stable")[:k]
        assert np.array_equal(index.numpy(), np.sort(order))


def test_a_message_that_is_not_finite_is_not_hidden() -> None:
    for compressor in COMPRESSORS:
        if isinstance(compressor, RandK | ByLayer | RankK | Threshold):
            continue
        v = torch.ones(D).index_fill(0, torch.tensor(11), torch.inf)
        out = compressor(v, LAYOUT, source(1), source(2))
        assert not out.isfinite().all() or isinstance(compressor.coder, StochasticSigns | Votes), compressor


def test_malformed_payloads_are_refused() -> None:
    top = TopK(0.02)
    fields = top.fields(LAYOUT)
    good = top.encode(vectors(3)[2], LAYOUT, source(1))
    assert "index" in fields
    with pytest.raises(Invalid, match="must rise"):
        top.decode(good | {"index": good["index"][::-1].copy()}, LAYOUT)
    with pytest.raises(Invalid, match="must rise"):
        top.decode(good | {"index": np.full_like(good["index"], 3)}, LAYOUT)
    with pytest.raises(Invalid, match="below"):
        top.decode(good | {"index": np.append(good["index"][:-1], np.uint64(D))}, LAYOUT)
    wide = TopK(0.3)
    held = wide.encode(vectors(3)[2], LAYOUT, source(1))
    with pytest.raises(Invalid, match="places, must be"):
        wide.decode(held | {"mask": np.ones(D, np.uint64)}, LAYOUT)
    coder = QSGD(levels=5)
    with pytest.raises(Invalid, match="levels"):
        coder.read(coder.write(torch.ones(4), source(1)) | {"level": np.full(4, 7, np.uint64)})
    for three in (Ternary(), Votes()):
        sent = three.write(torch.ones(9), source(1))
        with pytest.raises(Invalid, match=r"trit: 3, allowed is 0 to 2"):
            three.read(sent | {"trit": np.full(4, 3, np.uint64)})
        with pytest.raises(Invalid, match=r"fives: 243, allowed is 0 to 242"):
            three.read(sent | {"fives": np.array([243], np.uint64)})
    blob = pack(good, fields)
    for broken in (b"", blob[:-1], blob + b"\0"):
        with pytest.raises(Invalid, match="bytes"):
            unpack(broken, fields)
    if bits(fields) % 8:
        with pytest.raises(Invalid, match="beyond"):
            unpack(blob[:-1] + bytes([blob[-1] | 0x80]), fields)
    with pytest.raises(Invalid, match="must have"):
        pack({"value": good["value"]}, fields)
    with pytest.raises(Invalid, match="more than"):
        pack(good | {"index": good["index"] + np.uint64(2**40)}, fields)


def most_numbers(by: Compressor) -> int:
    """How many numbers that are not 0 a message can say."""
    if isinstance(by, ByLayer):
        return sum(most_numbers_of(by.inner, Layout((block,))) for block in LAYOUT.blocks)
    return most_numbers_of(by, LAYOUT)


def most_numbers_of(by: Compressor, layout: Layout) -> int:
    if isinstance(by, Threshold):
        by = TopK(by.most, by.coder)
    return by.k(layout) if isinstance(by, TopK | RandK) else layout.width


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_any_bytes_are_a_message_or_refused(compressor: Compressor) -> None:
    """Noise, all ones, and honest bytes with some of them changed: `Invalid`, or no more numbers than there may be."""
    fields, random = compressor.fields(LAYOUT), np.random.default_rng(0)
    size, spare = (bits(fields) + 7) // 8, -bits(fields) % 8
    honest = np.frombuffer(pack(compressor.encode(vectors(4)[2], LAYOUT, source(1), source(7)), fields), "u1")
    read = 0
    for trial in range(60):
        blob = honest.copy()
        if trial % 3:
            blob[random.integers(size, size=trial // 3 + 1)] ^= np.uint8(1 << random.integers(8))
        else:
            blob[:] = 255 if trial == 0 else random.integers(256, size=size)
        blob[-1] &= 255 >> spare
        try:
            row = compressor.decode(unpack(blob.tobytes(), fields), LAYOUT, source(7))
        except Invalid:
            continue
        read += 1
        assert (row.shape, row.dtype) == ((D,), torch.float32)
        assert int((row != 0).sum()) <= most_numbers(compressor)
    assert read or isinstance(compressor, Threshold | TopK | ByLayer)


def test_scales_and_exponents_that_no_honest_client_sends_are_not_finite() -> None:
    """They are refused where a message is received, for what is read is NaN or infinite throughout."""
    nan, inf = (bits_of(torch.tensor([x])).numpy().astype(np.uint64) for x in (torch.nan, torch.inf))
    for coder in (Signs(), StochasticSigns(), QSGD(), Ternary()):
        sent = coder.write(torch.ones(7), source(1))
        for scale in (nan, inf):
            assert not coder.read(sent | {"scale": scale}).isfinite().any()
    half = Float16().write(torch.tensor([0.0, 1.0, -0.5]), source(1))
    assert not Float16().read(half | {"exponent": np.array([511], np.uint64)})[1:].isfinite().any()


def test_rank_k_is_the_best_of_its_rank() -> None:
    """Eckart and Young: the error of a matrix is that of the singular values left out."""
    layout = Layout((Block("w", (20, 30), "hidden"),))
    v = torch.randn(600, generator=torch.Generator().manual_seed(0))
    out = RankK(3)(v, layout, source(0))
    left = torch.linalg.svdvals(v.view(20, 30))[3:].square().sum()
    assert float((out - v).square().sum()) == pytest.approx(float(left), rel=1e-4)


def test_counts_of_bits() -> None:
    """By hand: d = 420 numbers."""
    assert D == 420
    assert All().bits(LAYOUT) == 32 * D
    assert All(NaturalCompression()).bits(LAYOUT) == 9 * D
    assert All(Signs()).bits(LAYOUT) == D + 32
    assert All(StochasticSigns(1.0)).bits(LAYOUT) == D
    assert All(Votes()).bits(LAYOUT) == 8 * 84
    assert All(Ternary()).bits(LAYOUT) == 8 * 84 + 32
    assert Votes().fields(13) == {"fives": (2, 8), "trit": (3, 2)}
    assert TopK(0.02).bits(LAYOUT) == 8 * (32 + 9)
    assert TopK(0.3).bits(LAYOUT) == 126 * 32 + D
    assert RandK(0.1).bits(LAYOUT) == 42 * 32
    assert RankK(2).bits(LAYOUT) == 32 * (2 * 32 + 12 + 2 * 24 + 2 * 17)
