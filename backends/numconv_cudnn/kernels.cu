// What cuDNN leaves to us: a look for values that are not finite, the results that they touch, bias, activation, gradients of a bias.
//
// Macros: IN and OUT, the element types. Sums are held in float. Scalars and addresses have 64 bits, strides count elements. Every
// sum has one owner and one order, so that results have the same bits on every run.

typedef long long i64;

struct Half { unsigned short bits; };
struct BFloat { unsigned short bits; };

union Word { float value; unsigned bits; };

__device__ __forceinline__ float wide(float v) { return v; }

__device__ __forceinline__ float wide(BFloat v) {
  Word word;
  word.bits = (unsigned)v.bits << 16;
  return word.value;
}

__device__ __forceinline__ float wide(Half v) {
#ifdef NUMCONV_HOST
  _Float16 half;
  __builtin_memcpy(&half, &v, 2);
  return half;
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(v.bits));
  return value;
#endif
}

__device__ __forceinline__ void store(float *place, float v) { *place = v; }

__device__ __forceinline__ void store(BFloat *place, float v) {
  Word word;
  word.value = v;
  unsigned odd = (word.bits >> 16) & 1;  // ties go to even; a NaN stays one when its low bits are cut off
  place->bits = (unsigned short)(v != v ? (word.bits >> 16) | 0x40 : (word.bits + 0x7fff + odd) >> 16);
}

__device__ __forceinline__ void store(Half *place, float v) {
#ifdef NUMCONV_HOST
  _Float16 half = (_Float16)v;
  __builtin_memcpy(place, &half, 2);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(place->bits) : "f"(v));
#endif
}

__device__ __forceinline__ bool is_finite(float v) { return v - v == 0.0f; }

// --- bias and activation

enum { NONE, RELU, SILU, GELU };

__device__ __forceinline__ float activated(float v, i64 activation) {
  if (activation == RELU) return v < 0.0f ? 0.0f : v;
  if (activation == SILU) return v / (1.0f + expf(-v));
  if (activation == GELU) return 0.5f * v * erfcf(v * -0.70710678118654752f);
  return v;
}

// y of `count` elements, dense in memory; its channels are `step` apart, and there are `channels` of them. bias may be null.
extern "C" __global__ void finish(OUT *y, const IN *bias, i64 count, i64 step, i64 channels, i64 activation) {
  unsigned pace = gridDim.x * blockDim.x;
  for (i64 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += pace) {
    float value = wide(y[i]);
    if (bias) value += wide(bias[(unsigned)i / (unsigned)step % (unsigned)channels]);
    store(y + i, activated(value, activation));
  }
}

// --- arrays that cuDNN cannot take as they lie

struct Box { i64 size[5], from[5], to[5]; };  // axes in the order of the target's memory

template <class T> __device__ __forceinline__ void move(const Box &box, const T *from, T *to) {
  i64 all = box.size[0] * box.size[1] * box.size[2] * box.size[3] * box.size[4], pace = (i64)gridDim.x * blockDim.x;
  for (i64 item = (i64)blockIdx.x * blockDim.x + threadIdx.x; item < all; item += pace) {
    i64 rest = item, source = 0, target = 0;
    for (int axis = 4; axis >= 0; --axis) {
      i64 at = rest % box.size[axis];
      rest /= box.size[axis];
      source += at * box.from[axis];
      target += at * box.to[axis];
    }
    to[target] = from[source];
  }
}

extern "C" __global__ void move_in(Box box, const IN *from, IN *to) { move(box, from, to); }

extern "C" __global__ void move_out(Box box, const OUT *from, OUT *to) { move(box, from, to); }

// --- what is not finite

// A flag a block: whether it saw a value that is not finite among `count`.
extern "C" __global__ void look(const IN *values, i64 count, unsigned char *flags) {
  int found = 0;
  i64 pace = (i64)gridDim.x * blockDim.x;
#pragma unroll 4
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += pace) found |= !is_finite(wide(values[i]));
  found = __syncthreads_or(found);
  if (threadIdx.x == 0) flags[blockIdx.x] = (unsigned char)(found != 0);
}

// --- convolutions whose padding zeros are no terms

// Three spatial axes; those that a problem has fewer come first, with one position and one tap. a and b: the steps of the inputs in
// their order. The result is dense, [outer, inner, *sizes], or with `last` [outer, *sizes, inner].
struct Geometry {
  i64 n, c, k, groups, activation, last;
  i64 size[3], taps[3], output[3], stride[3], low[3], dilation[3];
  i64 witness[3];
  i64 a[5], b[5];
};

struct Place { i64 outer, inner, at[3]; };

__device__ __forceinline__ i64 take(i64 *item, i64 size) {
  i64 rest = *item % size;
  *item /= size;
  return rest;
}

__device__ __forceinline__ Place unravel(i64 item, i64 inner, const i64 *sizes, bool last) {
  Place place;
  if (last) place.inner = take(&item, inner);
  for (int axis = 2; axis >= 0; --axis) place.at[axis] = take(&item, sizes[axis]);
  if (!last) place.inner = take(&item, inner);
  place.outer = item;
  return place;
}

__device__ __forceinline__ i64 volume(const i64 *sizes) { return sizes[0] * sizes[1] * sizes[2]; }

__device__ __forceinline__ i64 offset(const i64 *steps, i64 outer, i64 inner, const i64 *at) {
  return outer * steps[0] + inner * steps[1] + at[0] * steps[2] + at[1] * steps[3] + at[2] * steps[4];
}

// The positions of x that an output reads with a tap; false if one lies in the padding.
__device__ __forceinline__ bool read_by(const Geometry &g, const i64 *q, const i64 *t, i64 *i) {
  bool inside = true;
  for (int axis = 0; axis < 3; ++axis) {
    i[axis] = q[axis] * g.stride[axis] - g.low[axis] + t[axis] * g.dilation[axis];
    inside = inside && i[axis] >= 0 && i[axis] < g.size[axis];
  }
  return inside;
}

// The output that reads a position of x with a tap; false if there is none.
__device__ __forceinline__ bool reader_of(const Geometry &g, const i64 *i, const i64 *t, i64 *q) {
  bool exists = true;
  for (int axis = 0; axis < 3; ++axis) {
    i64 from = i[axis] + g.low[axis] - t[axis] * g.dilation[axis];
    q[axis] = from / g.stride[axis];
    exists = exists && from >= 0 && from % g.stride[axis] == 0 && q[axis] < g.output[axis];
  }
  return exists;
}

__device__ float forward_at(const Geometry &g, const IN *x, const IN *w, const Place &y) {
  float sum = 0.0f;
  i64 inputs = g.c / g.groups, first = y.inner / (g.k / g.groups) * inputs, all = volume(g.taps), i[3];
  for (i64 term = 0; term < inputs * all; ++term) {
    Place tap = unravel(term, inputs, g.taps, false);
    if (read_by(g, y.at, tap.at, i))
      sum = fmaf(wide(x[offset(g.a, y.outer, first + tap.inner, i)]), wide(w[offset(g.b, y.inner, tap.inner, tap.at)]), sum);
  }
  return sum;
}

__device__ float input_grad_at(const Geometry &g, const IN *grad_y, const IN *w, const Place &x) {
  float sum = 0.0f;
  i64 inputs = g.c / g.groups, outputs = g.k / g.groups, first = x.inner / inputs * outputs, all = volume(g.taps), q[3];
  for (i64 term = 0; term < outputs * all; ++term) {
    Place tap = unravel(term, outputs, g.taps, false);
    i64 k = first + tap.inner;
    if (reader_of(g, x.at, tap.at, q))
      sum = fmaf(wide(grad_y[offset(g.a, x.outer, k, q)]), wide(w[offset(g.b, k, x.inner % inputs, tap.at)]), sum);
  }
  return sum;
}

__device__ float weight_grad_at(const Geometry &g, const IN *grad_y, const IN *x, const Place &w) {
  float sum = 0.0f;
  i64 inputs = g.c / g.groups, channel = w.outer / (g.k / g.groups) * inputs + w.inner, i[3];
  for (i64 term = 0; term < g.n * volume(g.output); ++term) {
    Place y = unravel(term, 1, g.output, false);
    if (read_by(g, y.at, w.at, i))
      sum = fmaf(wide(grad_y[offset(g.a, y.outer, w.outer, y.at)]), wide(x[offset(g.b, y.outer, channel, i)]), sum);
  }
  return sum;
}

enum { WITNESSES, WEIGHTS, EACH, ALL };  // what tells that results are to be computed again

__device__ __forceinline__ bool is_witness(const Geometry &g, const Place &place) {
  bool same = place.outer == 0;
  for (int axis = 0; axis < 3; ++axis) same = same && place.at[axis] == g.witness[axis];
  return same;
}

// Whether a witness is not finite: the results of the first image, in all channels, at one position. The same for a block.
__device__ bool bear_witness(const Geometry &g, const OUT *y, i64 channels, const i64 *sizes) {
  int found = 0;
  i64 position = (g.witness[0] * sizes[1] + g.witness[1]) * sizes[2] + g.witness[2];
  i64 start = g.last ? position * channels : position, step = g.last ? 1 : volume(sizes);
#pragma unroll 4
  for (int channel = threadIdx.x; channel < (int)channels; channel += blockDim.x)
    found |= !is_finite(wide(y[start + channel * step]));
  return __syncthreads_or(found);
}

// Whether one of some weights is not finite: by flags that `look` left, or where there are none by a look at all of them.
__device__ bool weights_tell(const IN *w, i64 count, const unsigned char *flags) {
  int found = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < (int)count; i += blockDim.x) found |= flags ? flags[i] : !is_finite(wide(w[i]));
  return __syncthreads_or(found);
}

// Computes results again: all but the witnesses if one of them is not finite; all if one of `count` weights, or flags, tells; each
// that is not finite itself; or all, where nothing computed them before.
#define REDO(NAME, OUTER, INNER, SIZES)                                                                                  \
  extern "C" __global__ void redo_##NAME(Geometry g, const IN *a, const IN *b, const IN *bias, OUT *y, i64 by, i64 count,  \
                                         const unsigned char *flags) {                                                   \
    i64 inner = INNER, all = OUTER * inner * volume(SIZES), pace = (i64)gridDim.x * blockDim.x;                           \
    if (by == WITNESSES && !bear_witness(g, y, inner, SIZES)) return;                                                     \
    if (by == WEIGHTS && !weights_tell(b, count, flags)) return;                                                          \
    for (i64 first = (i64)blockIdx.x * blockDim.x + threadIdx.x; first < all; first += AT_ONCE * pace) {                  \
      bool wrong[AT_ONCE];                                                                                               \
      _Pragma("unroll") for (int each = 0; each < AT_ONCE; ++each) {                                                      \
        i64 item = first + each * pace;                                                                                  \
        wrong[each] = item < all && (by != EACH || !is_finite(wide(y[item])));                                            \
      }                                                                                                                  \
      _Pragma("unroll 1") for (int each = 0; each < AT_ONCE; ++each) {                                                    \
        if (!wrong[each]) continue;                                                                                      \
        i64 item = first + each * pace;                                                                                  \
        Place place = unravel(item, inner, SIZES, g.last);                                                               \
        if (by == WITNESSES && is_witness(g, place)) continue;                                                           \
        float sum = NAME##_at(g, a, b, place);                                                                           \
        if (bias) sum += wide(bias[place.inner]);                                                                        \
        store(y + item, activated(sum, g.activation));                                                                   \
      }                                                                                                                  \
    }                                                                                                                    \
  }

enum { AT_ONCE = 4 };

REDO(forward, g.n, g.k, g.output)
REDO(input_grad, g.n, g.c, g.size)
REDO(weight_grad, g.k, (g.c / g.groups), g.taps)

// --- gradients of a bias

enum { THREADS = 256 };

// Partial sums [parts, channels] of values [n, channels, positions], or with `last` [n, positions, channels]. A block has `lanes`
// neighbouring channels and one part of the n * positions rows.
extern "C" __global__ void channel_sums(const IN *values, float *sums, i64 n, i64 channels, i64 positions, i64 lanes, i64 parts) {
  __shared__ float held[THREADS];
  unsigned lane = threadIdx.x % (unsigned)lanes, row = threadIdx.x / (unsigned)lanes, pace = THREADS / (unsigned)lanes;
  unsigned part = blockIdx.x % (unsigned)parts, all = (unsigned)(n * positions), length = (all + (unsigned)parts - 1) / (unsigned)parts;
  i64 channel = blockIdx.x / (unsigned)parts * lanes + lane;
  unsigned end = min(all, (part + 1) * length);
  float sum = 0.0f;
  if (channel < channels)
#pragma unroll 4
    for (unsigned r = part * length + row; r < end; r += pace) {
      i64 at = lanes > 1 ? r * channels + channel
                         : (r / (unsigned)positions * channels + channel) * positions + r % (unsigned)positions;
      sum += wide(values[at]);
    }
  held[threadIdx.x] = sum;
  for (unsigned half = pace / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) held[threadIdx.x] += held[threadIdx.x + half * (unsigned)lanes];
  }
  if (row == 0 && channel < channels) sums[part * channels + channel] = held[lane];
}

// out[channel * step] from partial sums [parts, channels], added up in the order of the parts.
extern "C" __global__ void store_sums(const float *sums, OUT *out, i64 channels, i64 parts, i64 step) {
  i64 channel = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  float sum = 0.0f;
  for (i64 part = 0; part < parts; ++part) sum += sums[part * channels + channel];
  store(out + channel * step, sum);
}
