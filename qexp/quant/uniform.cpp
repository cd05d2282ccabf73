// The steps of the uniform quantizers over float32, one pass over memory; what `qexp/quant/uniform.py` compiles.
//
// Operations and their order are those of `qexp/quant/quantizers.py`, so results are equal bit for bit: no fast-math, and no
// contraction of a product and a sum into one rounding (-ffp-contract=off).

#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t PIECE = 1 << 14;  // elements that a thread takes at once

// As `qexp/quant/rounding.py` has them, in the order of `ROUNDING_NAMES`.
struct None { static float of(float v) { return v; } };
struct HalfEven { static float of(float v) { return std::rint(v); } };
struct HalfUp { static float of(float v) { return std::ceil(std::floor(v * 2.0f) / 2.0f); } };
struct HalfAway { static float of(float v) { return std::copysign(HalfUp::of(std::fabs(v)), v); } };
struct Floor { static float of(float v) { return std::floor(v); } };
struct Ceil { static float of(float v) { return std::ceil(v); } };
struct Trunc { static float of(float v) { return std::trunc(v); } };

// As torch.clamp: of equal values, zeros of two signs, the element stays.
inline float clamp(float v, float low, float high) {
    const float at_least = v < low ? low : v;
    return at_least > high ? high : at_least;
}

// One step for all elements; `out` may be `x`, but neither overlaps the other otherwise.
template <class Step>
inline void each(const float* x, float* out, int64_t n, Step step) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = step(x[i]);
}

// A piece of one channel; p are its parameters and k the numbers of all channels, in the order of the Python kernel.
template <class Round>
void quantize(const float* x, float* out, int64_t n, int form, const float* p, const float* k) {
    const float a = p[0], b = p[1], c = p[2], d = p[3];  // copies, which `out` cannot overwrite
    const float e = k[0], f = k[1], low = k[2], high = k[3];
    switch (form) {  // in the order of `FORMS`
        case 0:  // linear: minimum, span, step, offset; levels, lowest, smallest and largest code
            return each(x, out, n, [=](float v) { return clamp(Round::of((v - a) / b * e + f), low, high) * c + d; });
        case 1:  // linear_raw: the codes
            return each(x, out, n, [=](float v) { return clamp(Round::of((v - a) / b * e + f), low, high); });
        case 2:  // multiply: 1 / scale, limits of the steps, scale
            return each(x, out, n, [=](float v) { return clamp(Round::of(v * a), b, c) * d; });
        case 3:  // divide: scale, limits of the steps, scale
            return each(x, out, n, [=](float v) { return clamp(Round::of(v / a), b, c) * d; });
        case 4:  // scale_factor: codes per unit; smallest and largest code
            return each(x, out, n, [=](float v) { return Round::of(clamp(v * a, e, f)) / a; });
    }
}

// The range so far, with one more element; `odd` is set by NaN, which no comparison sees.
inline void widen(float v, float& low, float& high, int32_t& odd) {
    low = v < low ? v : low;
    high = v > high ? v : high;
    odd |= v != v;
}

// Smallest and largest of n elements; NaN among them makes both NaN.
void range(const float* x, int64_t n, float* minimum, float* maximum) {
    constexpr int LANES = 32;
    float low[LANES], high[LANES];
    int32_t odd[LANES];
    for (int j = 0; j < LANES; ++j) low[j] = high[j] = x[0], odd[j] = x[0] != x[0];
    const int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < n; i += LANES) {
        const int count = i < whole ? LANES : static_cast<int>(n - whole);
        if (count == LANES)
            for (int j = 0; j < LANES; ++j) widen(x[i + j], low[j], high[j], odd[j]);
        else
            for (int j = 0; j < count; ++j) widen(x[i + j], low[j], high[j], odd[j]);
    }
    int32_t any = odd[0];
    for (int j = 1; j < LANES; ++j) {
        low[0] = low[j] < low[0] ? low[j] : low[0];
        high[0] = high[j] > high[0] ? high[j] : high[0];
        any |= odd[j];
    }
    *minimum = any ? NAN : low[0];
    *maximum = any ? NAN : high[0];
}

using Quantize = void (*)(const float*, float*, int64_t, int, const float*, const float*);
constexpr Quantize BY_ROUNDING[] = {quantize<None>,  quantize<HalfEven>, quantize<HalfUp>, quantize<HalfAway>,
                                    quantize<Floor>, quantize<Ceil>,     quantize<Trunc>};

}  // namespace

// x and out are [before, channels, size], contiguous, and may be the same. Parameter k of channel c is
// params[k][c * strides[k]].
extern "C" void qexp_uniform(const float* x, float* out, int64_t before, int64_t channels, int64_t size, int32_t form,
                             int32_t rounding, int32_t count, const float* const* params, const int64_t* strides,
                             const float* numbers, int32_t threads) {
    const int64_t cuts = (size + PIECE - 1) / PIECE, pieces = before * channels * cuts;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t row = piece / cuts, start = piece % cuts * PIECE, channel = row % channels;
        float p[4] = {0, 0, 0, 0};
        for (int k = 0; k < count; ++k) p[k] = params[k][channel * strides[k]];
        const int64_t at = row * size + start, n = size - start < PIECE ? size - start : PIECE;
        BY_ROUNDING[rounding](x + at, out + at, n, form, p, numbers);
    }
}

// Smallest and largest element of each row of [channels, size]; NaN in a row makes both ends NaN.
extern "C" void qexp_ranges(const float* x, int64_t channels, int64_t size, float* minimum, float* maximum, int32_t threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t channel = 0; channel < channels; ++channel)
        range(x + channel * size, size, minimum + channel, maximum + channel);
}

// `linear` with the ranges of the rows of [channels, size] themselves, in the order of operations of `linear_span`,
// `linear_inverse` and the kernel: span, step and offset are float32, too. `params` is room for [4, channels]. Returns 0, or
// without writing to out 1 where a range is not finite or overflows, or all elements are equal.
extern "C" int32_t qexp_linear(const float* x, float* out, int64_t channels, int64_t size, int32_t raw, int32_t rounding,
                               const float* numbers, float* params, int32_t threads) {
    float *low = params, *span = low + channels, *step = span + channels, *offset = step + channels;
    if (channels > 1) {
        qexp_ranges(x, channels, size, low, offset, threads);
    } else {  // one row, which the threads share
        float least = x[0], most = x[0];
        int32_t odd = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(min : least) reduction(max : most) reduction(| : odd)
        for (int64_t at = 0; at < size; at += PIECE) {
            float ends[2];
            range(x + at, size - at < PIECE ? size - at : PIECE, ends, ends + 1);
            odd |= ends[0] != ends[0];
            least = ends[0] < least ? ends[0] : least;
            most = ends[1] > most ? ends[1] : most;
        }
        low[0] = odd ? NAN : least;
        offset[0] = most;
    }
    float smallest = low[0], largest = offset[0];
    for (int64_t c = 0; c < channels; ++c) {
        const float width = offset[c] - low[c];
        if (!std::isfinite(width)) return 1;
        smallest = low[c] < smallest ? low[c] : smallest;
        largest = offset[c] > largest ? offset[c] : largest;
        step[c] = width / numbers[0];
        offset[c] = low[c] - numbers[1] * step[c];
        span[c] = width == 0.0f ? 1.0f : width;
    }
    if (smallest == largest) return 1;
    const float* all[] = {low, span, step, offset};
    const int64_t strides[] = {1, 1, 1, 1};
    qexp_uniform(x, out, 1, channels, size, raw ? 1 : 0, rounding, 4, all, strides, numbers, threads);
    return 0;
}

// LSQ's backward pass over n elements, as `learned_steps` of `qexp/quant/gradient_blocks.py`: v = x * numbers[0] is inside where
// numbers[3] < v < numbers[4]; `passed` is the gradient there and 0 elsewhere, `moved` clamp(R(v), numbers[1], numbers[2]) less
// what is inside of v. The sums are torch's, whose order of summation no loop here would meet.
extern "C" void qexp_learned(const float* x, const float* grad, float* passed, float* moved, int64_t n, const float* numbers,
                             int32_t threads) {
    const float inverse = numbers[0], low = numbers[1], high = numbers[2], below = numbers[3], above = numbers[4];
#pragma omp parallel for simd num_threads(threads) if (parallel : threads > 1) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const float v = x[i] * inverse, g = grad[i];
        const bool outside = (v <= below) | (v >= above);
        passed[i] = outside ? 0.0f : g;
        moved[i] = clamp(std::rint(v), low, high) - (outside ? 0.0f : v);
    }
}
