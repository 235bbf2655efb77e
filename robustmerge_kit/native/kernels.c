/* Loops over the entries of one factor that torch needs several passes for. No state, no Python: called through ctypes,
 * which lets go of the interpreter meanwhile. Sums are taken in a fixed order, so that results do not depend on the width of
 * the processor's registers; contraction into fused multiply-add is off for the same reason (see hatch_build.py).
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One build for all x86-64 processors, with faster variants picked when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif
#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
enum { BLOCK = 512, LANES = 8, BINS = 1 << 15, GROUP = 128 };

static const uint32_t LARGEST[] = {0x7f7fffff, 0x7f7f, 0x7bff}; /* bits of the largest finite magnitude */

typedef float lanes_t __attribute__((vector_size(4 * LANES)));
typedef int32_t bits_t __attribute__((vector_size(4 * LANES)));

INLINE float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* A finite float16: its exponent and fraction read as those of a float32 are too small by 2^112. */
INLINE float of_half(uint32_t half) {
    float magnitude = of_bits((half & 0x7fff) << 13) * 0x1p112f;
    return (half & 0x8000) ? -magnitude : magnitude;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float value_of(uint32_t magnitude, int dtype) {
    return dtype == FLOAT32 ? of_bits(magnitude) : dtype == BFLOAT16 ? of_bits(magnitude << 16) : of_half(magnitude);
}

INLINE void load(const void *x, int dtype, int64_t start, int64_t n, float *restrict values) {
    const uint16_t *half = (const uint16_t *)x + start;
    if (dtype == FLOAT32)
        memcpy(values, (const float *)x + start, n * sizeof(float));
    else if (dtype == BFLOAT16)
        for (int64_t i = 0; i < n; i++) values[i] = of_bits((uint32_t)half[i] << 16);
    else
        for (int64_t i = 0; i < n; i++) values[i] = of_half(half[i]);
}

/* --- What the values are --------------------------------------------------------------------------------------------- */

enum { NOT_FINITE = 1, NOT_ZERO = 2 };

INLINE int scan(const void *x, int dtype, int64_t n) {
    uint32_t any = 0, highest = 0;
    if (dtype == FLOAT32) {
        const uint32_t *bits = x;
        for (int64_t i = 0; i < n; i++) {
            uint32_t magnitude = bits[i] & 0x7fffffff;
            any |= magnitude;
            highest = magnitude > highest ? magnitude : highest;
        }
    } else {
        const uint16_t *bits = x;
        for (int64_t start = 0; start < n; start += BLOCK) {
            int64_t stop = start + BLOCK < n ? start + BLOCK : n;
            uint16_t most = 0;
            for (int64_t i = start; i < stop; i++) {
                uint16_t magnitude = bits[i] & 0x7fff;
                most = magnitude > most ? magnitude : most;
            }
            highest = most > highest ? most : highest;
        }
        any = highest;
    }
    return (highest > LARGEST[dtype] ? NOT_FINITE : 0) | (any ? NOT_ZERO : 0);
}

struct values {
    const void *x;
    int64_t n;
    int32_t dtype, found;
};

/* Of every tensor: whether any of its n values is not finite, and whether any is not zero. */
WIDE void rmkit_scan(struct values *each, int64_t count) {
    for (int64_t i = 0; i < count; i++) each[i].found = scan(each[i].x, each[i].dtype, each[i].n);
}

/* --- The k-th smallest magnitude ------------------------------------------------------------------------------------- */

/* The bin that holds the k-th entry, counted from 1; *k becomes its place in that bin. */
INLINE uint32_t find_bin(const uint32_t *counts, int64_t bins, int64_t *k) {
    int64_t bin = 0;
    for (; bin < bins - GROUP; bin += GROUP) {
        uint64_t sum = 0;
        for (int64_t i = 0; i < GROUP; i++) sum += counts[bin + i];
        if ((int64_t)sum >= *k) break;
        *k -= (int64_t)sum;
    }
    while (*k > counts[bin]) *k -= counts[bin++];
    return (uint32_t)bin;
}

/* Bits of the k-th smallest magnitude, k from 1 to n; -1 without memory. Magnitudes sort like the integers of their bits. */
WIDE static int64_t kth_magnitude(const void *x, int dtype, int64_t n, int64_t k) {
    uint32_t *counts = calloc(dtype == FLOAT32 ? 2 * BINS : BINS, sizeof(uint32_t));
    if (!counts) return -1;
    int64_t found;
    if (dtype == FLOAT32) {
        const uint32_t *bits = x;
        for (int64_t i = 0; i < n; i++) counts[bits[i] >> 16 & 0x7fff]++;
        uint32_t high = find_bin(counts, BINS, &k);
        memset(counts, 0, 2 * BINS * sizeof(uint32_t));
        for (int64_t i = 0; i < n; i++)
            if ((bits[i] >> 16 & 0x7fff) == high) counts[bits[i] & 0xffff]++;
        found = (int64_t)high << 16 | find_bin(counts, 2 * BINS, &k);
    } else {
        const uint16_t *bits = x;
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            uint64_t four;
            memcpy(&four, bits + i, sizeof four);
            for (int at = 0; at < 64; at += 16) counts[four >> at & 0x7fff]++;
        }
        for (; i < n; i++) counts[bits[i] & 0x7fff]++;
        found = find_bin(counts, BINS, &k);
    }
    free(counts);
    return found;
}

/* --- Pruning --------------------------------------------------------------------------------------------------------- */

INLINE void sum_magnitudes(const float *values, int64_t n, float bound, double *full, double *rest) {
    lanes_t all = {0}, kept = {0}, here;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        memcpy(&here, values + i, sizeof here);
        here = (lanes_t)((bits_t)here & 0x7fffffff);
        all += here;
        kept += (lanes_t)((bits_t)here & (here >= bound));
    }
    double total = 0, remaining = 0;
    for (; i < n; i++) {
        double magnitude = fabsf(values[i]);
        total += magnitude;
        remaining += magnitude >= bound ? magnitude : 0.0;
    }
    for (int lane = 0; lane < LANES; lane++) {
        total += all[lane];
        remaining += kept[lane];
    }
    *full += total;
    *rest += remaining;
}

INLINE void put(const float *values, int64_t n, float bound, const float *scale, float *restrict out, int add) {
    for (int64_t i = 0; i < n; i++) {
        float kept = fabsf(values[i]) >= bound ? values[i] : 0.0f;
        if (scale) kept *= scale[i];
        out[i] = add ? out[i] + kept : kept;
    }
}

INLINE void prune(
    const void *x, int dtype, int64_t rows, int64_t cols, float bound, const float *scale, float *out, int64_t stride,
    double *full, double *rest
) {
    float values[BLOCK];
    if (cols > BLOCK / 2) {
        for (int64_t row = 0; row < rows; row++)
            for (int64_t col = 0; col < cols; col += BLOCK) {
                int64_t n = cols - col < BLOCK ? cols - col : BLOCK;
                load(x, dtype, row * cols + col, n, values);
                put(values, n, bound, scale ? scale + col : NULL, out + row * stride + col, 1);
                if (full) sum_magnitudes(values, n, bound, full + row, rest + row);
            }
        return;
    }
    int64_t together = cols ? BLOCK / cols : 1;
    for (int64_t first = 0; first < rows; first += together) {
        int64_t last = first + together < rows ? first + together : rows;
        load(x, dtype, first * cols, (last - first) * cols, values);
        for (int64_t row = first; row < last; row++) {
            const float *here = values + (row - first) * cols;
            put(here, cols, bound, scale, out + row * stride, 1);
            if (full) sum_magnitudes(here, cols, bound, full + row, rest + row);
        }
    }
}

/* One factor: x (rows, cols), of which the k-th smallest magnitude is the bound, none for k = 0. What is left, times the scale
 * of its column unless NULL, is added to out, whose rows are `stride` apart. full and rest: NULL, or have the sums of
 * magnitudes along every row added, before pruning and after it.
 */
struct pruning {
    const void *x;
    const float *scale;
    float *out;
    double *full, *rest;
    int64_t rows, cols, k, stride;
    int32_t dtype;
};

/* Prune factors one after the other. Returns 0, or -1 without memory. */
WIDE int rmkit_prune(const struct pruning *each, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        struct pruning p = each[i];
        int64_t found = p.k > 0 ? kth_magnitude(p.x, p.dtype, p.rows * p.cols, p.k) : 0;
        if (found < 0) return -1;
        float bound = value_of((uint32_t)found, p.dtype);
        if (p.scale)
            prune(p.x, p.dtype, p.rows, p.cols, bound, p.scale, p.out, p.stride, p.full, p.rest);
        else
            prune(p.x, p.dtype, p.rows, p.cols, bound, NULL, p.out, p.stride, p.full, p.rest);
    }
    return 0;
}

/* --- Counting digits ------------------------------------------------------------------------------------------------- */

/* An integer that sorts like the value and is equal where it is equal, -0 and 0 too; `is_signed` 0: the sign is left out. */
INLINE int32_t pattern_of(float value, int is_signed) {
    if (!is_signed) return (int32_t)(bits_of(value) & 0x7fffffff);
    int32_t bits = (int32_t)bits_of(value + 0.0f);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

INLINE void count_low(const float *x, int64_t n, int is_signed, int32_t prefix, int64_t *counts) {
    for (int64_t start = 0; start < n; start += 2 * LANES) {
        int64_t size = n - start < 2 * LANES ? n - start : 2 * LANES;
        int32_t any = 0;
        if (size == 2 * LANES)
            for (int i = 0; i < 2 * LANES; i++) any |= (pattern_of(x[start + i], is_signed) >> 16) == prefix;
        else
            any = 1;
        for (int64_t i = start; any && i < start + size; i++) {
            int32_t pattern = pattern_of(x[i], is_signed);
            if (pattern >> 16 == prefix) counts[pattern & 0xffff]++;
        }
    }
}

/* How often each 16-bit digit occurs in the patterns: level 0 counts the upper ones, from -32768 on; level 1 the lower ones
 * of patterns whose upper one is `prefix`. counts: 65536 numbers that are added to.
 */
WIDE void rmkit_count(const float *x, int64_t n, int is_signed, int level, int32_t prefix, int64_t *counts) {
    if (level == 1)
        is_signed ? count_low(x, n, 1, prefix, counts) : count_low(x, n, 0, prefix, counts);
    else if (is_signed)
        for (int64_t i = 0; i < n; i++) counts[(pattern_of(x[i], 1) >> 16) + BINS]++;
    else
        for (int64_t i = 0; i < n; i++) counts[(pattern_of(x[i], 0) >> 16) + BINS]++;
}

/* --- Trimming and electing a sign ------------------------------------------------------------------------------------ */

/* The entries of n lanes of m values that are at least as large as the bound of their lane, else 0. */
WIDE void rmkit_trim(const float *x, int64_t n, int64_t m, const float *bounds, float *restrict out) {
    for (int64_t t = 0; t < n; t++) put(x + t * m, m, bounds[t], NULL, out + t * m, 0);
}

INLINE lanes_t lanes_at(const float *x) {
    lanes_t values;
    memcpy(&values, x, sizeof values);
    return values;
}

/* LANES entries of n lanes. */
INLINE lanes_t elected(const float *x, int64_t n, int64_t m, const float *sizes) {
    const lanes_t zero = {0}, one = zero + 1.0f;
    lanes_t sum = zero, total = zero, mass = zero;
    for (int64_t t = 0; t < n; t++) sum += lanes_at(x + t * m);
    bits_t negative = (sum < zero) & (int32_t)0x80000000;
    for (int64_t t = 0; t < n; t++) {
        lanes_t value = (lanes_t)((bits_t)lanes_at(x + t * m) ^ negative);
        bits_t agrees = value > zero;
        total += (lanes_t)((bits_t)value & agrees);
        if (sizes) mass += (lanes_t)((bits_t)(zero + sizes[t]) & agrees);
    }
    bits_t some = mass > zero;
    mass = (lanes_t)(((bits_t)mass & some) | ((bits_t)one & ~some));
    return (lanes_t)((bits_t)total ^ negative) / mass;
}

/* Of n lanes of m values, entry by entry: the sum of those whose sign is that of the sum over all, + where it is 0; divided
 * by the sum of their sizes, 1 where it is 0, unless sizes is NULL.
 */
WIDE int rmkit_elect(const float *x, int64_t n, int64_t m, const float *sizes, float *restrict out) {
    int64_t whole = m - m % LANES, left = m - whole;
    for (int64_t i = 0; i < whole; i += LANES) {
        lanes_t result = sizes ? elected(x + i, n, m, sizes) : elected(x + i, n, m, NULL);
        memcpy(out + i, &result, sizeof result);
    }
    if (!left) return 0;
    float *rest = calloc(n * LANES, sizeof(float));
    if (!rest) return -1;
    for (int64_t t = 0; t < n; t++) memcpy(rest + t * LANES, x + t * m + whole, left * sizeof(float));
    lanes_t result = elected(rest, n, LANES, sizes);
    memcpy(out + whole, &result, left * sizeof(float));
    free(rest);
    return 0;
}

/* --- Rounding -------------------------------------------------------------------------------------------------------- */

/* To nearest, ties to even, as the processor rounds. */
INLINE uint32_t to_bfloat(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}

/* Adding 2^(13 + exponent) leaves the 11 bits that a float16 has, rounded; below 2^-14 its spacing stays 2^-24, and what
 * is added to 1/2 then stands in the lowest bits as the subnormal's own.
 */
INLINE uint32_t to_half(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, exponent = bits & 0x7f800000;
    float magnitude = of_bits(bits & 0x7fffffff);
    float shift = of_bits((exponent > 0x38800000 ? exponent : 0x38800000) + (13u << 23));
    float sum = magnitude + shift;
    uint32_t normal = (bits_of(sum - shift) >> 13) - (112u << 10);
    uint32_t small = bits_of(sum) - 0x3f000000;
    uint32_t rounded = magnitude < 0x1p-14f ? small : magnitude < 65520.0f ? normal : 0x7c00;
    return value == value ? sign | rounded : 0x7e00;
}

/* Two loops: a loop whose numbers are all of one width is one that compilers make good use of. */
INLINE void round_block(const float *x, int dtype, int64_t n, uint16_t *restrict out, float *restrict off) {
    uint32_t rounded[BLOCK];
    for (int64_t i = 0; i < n; i++) {
        rounded[i] = dtype == BFLOAT16 ? to_bfloat(x[i]) : to_half(x[i]);
        float back = dtype == BFLOAT16 ? of_bits(rounded[i] << 16) : of_half(rounded[i]);
        off[i] = (dtype == FLOAT16 && (rounded[i] & 0x7c00) == 0x7c00 ? INFINITY : back) - x[i];
    }
    for (int64_t i = 0; i < n; i++) out[i] = (uint16_t)rounded[i];
}

/* Round n numbers to bfloat16 or float16 and return the sum of the squares of what that changes; not finite where a result
 * is not.
 */
WIDE double rmkit_round(const float *x, int dtype, int64_t n, uint16_t *out) {
    double total = 0;
    float off[BLOCK];
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = n - start < BLOCK ? n - start : BLOCK;
        if (dtype == BFLOAT16)
            round_block(x + start, BFLOAT16, size, out + start, off);
        else
            round_block(x + start, FLOAT16, size, out + start, off);
        lanes_t sums = {0}, here;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) {
            memcpy(&here, off + i, sizeof here);
            sums += here * here;
        }
        for (; i < size; i++) total += (double)off[i] * off[i];
        for (int lane = 0; lane < LANES; lane++) total += sums[lane];
    }
    return total;
}

/* Of every row of x (rows, cols) and what it was rounded to: the squared norm, that of the loss x - rounded, and their inner
 * product; three numbers a row.
 */
WIDE void rmkit_losses(const float *x, const void *rounded, int dtype, int64_t rows, int64_t cols, double *sums) {
    float values[BLOCK];
    for (int64_t row = 0; row < rows; row++) {
        double norm2 = 0, lost2 = 0, along = 0;
        for (int64_t start = row * cols; start < (row + 1) * cols; start += BLOCK) {
            int64_t n = (row + 1) * cols - start < BLOCK ? (row + 1) * cols - start : BLOCK, i = 0;
            if (dtype == BFLOAT16)
                load(rounded, BFLOAT16, start, n, values);
            else
                load(rounded, dtype, start, n, values);
            lanes_t norms = {0}, losses = {0}, products = {0};
            for (; i + LANES <= n; i += LANES) {
                lanes_t whole = lanes_at(x + start + i), lost = whole - lanes_at(values + i);
                norms += whole * whole;
                losses += lost * lost;
                products += whole * lost;
            }
            for (; i < n; i++) {
                double whole = x[start + i], lost = whole - values[i];
                norm2 += whole * whole;
                lost2 += lost * lost;
                along += whole * lost;
            }
            for (int lane = 0; lane < LANES; lane++) {
                norm2 += norms[lane];
                lost2 += losses[lane];
                along += products[lane];
            }
        }
        sums[3 * row] = norm2;
        sums[3 * row + 1] = lost2;
        sums[3 * row + 2] = along;
    }
}
