// What all kernels share: element types, the geometry of a problem, and which position of x a tap reads.
//
// Compile-time macros: IN, OUT and ACC (element types of inputs, outputs and sums), NDIM (number of spatial dimensions) and
// GEOMETRY_BYTES. No kernel uses shared memory, barriers or warp intrinsics: a thread is a plain function of its index, so that
// the same source runs in a loop on a host. Every sum has one owner and one order, so results have the same bits on every run.

typedef long long i64;

struct Half { unsigned short bits; };
struct BFloat { unsigned short bits; };
template <class T> struct Complex { T re, im; };

// --- conversions: widened to the type of the sums, narrowed with one rounding

__device__ __forceinline__ float to_float(Half v) {
#ifdef NUMCONV_HOST
  _Float16 half;
  __builtin_memcpy(&half, &v.bits, 2);
  return (float)half;
#else
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#endif
}

__device__ __forceinline__ Half to_half(float v) {
  Half narrow;
#ifdef NUMCONV_HOST
  _Float16 half = (_Float16)v;
  __builtin_memcpy(&narrow.bits, &half, 2);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
#endif
  return narrow;
}

__device__ __forceinline__ float float_of_bits(unsigned bits) {
  union { unsigned bits; float value; } both;
  both.bits = bits;
  return both.value;
}

__device__ __forceinline__ float to_float(BFloat v) { return float_of_bits((unsigned)v.bits << 16); }

__device__ __forceinline__ BFloat to_bfloat(float v) {
  union { float value; unsigned bits; } both;
  both.value = v;
  BFloat narrow;
  if (v != v)
    narrow.bits = (unsigned short)((both.bits >> 16) | 0x40);  // a NaN stays one when its low bits are cut off
  else
    narrow.bits = (unsigned short)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);  // to nearest, ties to even
  return narrow;
}

template <class A, class T> struct Convert {
  static __device__ __forceinline__ A of(T v) { return (A)v; }
};
template <class A> struct Convert<A, Half> {
  static __device__ __forceinline__ A of(Half v) { return (A)to_float(v); }
};
template <class A> struct Convert<A, BFloat> {
  static __device__ __forceinline__ A of(BFloat v) { return (A)to_float(v); }
};
template <class T> struct Convert<Half, T> {
  static __device__ __forceinline__ Half of(T v) { return to_half((float)v); }
};
template <class T> struct Convert<BFloat, T> {
  static __device__ __forceinline__ BFloat of(T v) { return to_bfloat((float)v); }
};
template <> struct Convert<Half, Half> {
  static __device__ __forceinline__ Half of(Half v) { return v; }
};
template <> struct Convert<BFloat, BFloat> {
  static __device__ __forceinline__ BFloat of(BFloat v) { return v; }
};
template <class A, class T> struct Convert<Complex<A>, Complex<T> > {
  static __device__ __forceinline__ Complex<A> of(Complex<T> v) {
    Complex<A> wide = {(A)v.re, (A)v.im};
    return wide;
  }
};
__device__ __forceinline__ ACC wide(IN v) { return Convert<ACC, IN>::of(v); }
__device__ __forceinline__ OUT narrow(ACC v) { return Convert<OUT, ACC>::of(v); }

// --- arithmetic

// a * b + c, rounded once; integers wrap.
__device__ __forceinline__ float madd(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double madd(double a, double b, double c) { return fma(a, b, c); }
template <class T> __device__ __forceinline__ Complex<T> madd(Complex<T> a, Complex<T> b, Complex<T> c) {
  Complex<T> sum;
  sum.re = madd(-a.im, b.im, madd(a.re, b.re, c.re));
  sum.im = madd(a.im, b.re, madd(a.re, b.im, c.im));
  return sum;
}
template <class T> __device__ __forceinline__ T madd(T a, T b, T c) {
  return (T)((unsigned long long)a * (unsigned long long)b + (unsigned long long)c);
}

template <class T> __device__ __forceinline__ T plus(T a, T b) { return a + b; }
__device__ __forceinline__ int plus(int a, int b) { return (int)((unsigned)a + (unsigned)b); }
__device__ __forceinline__ i64 plus(i64 a, i64 b) { return (i64)((unsigned long long)a + (unsigned long long)b); }
template <class T> __device__ __forceinline__ Complex<T> plus(Complex<T> a, Complex<T> b) {
  Complex<T> sum = {a.re + b.re, a.im + b.im};
  return sum;
}

template <class T> __device__ __forceinline__ T conjugate(T a) { return a; }
template <class T> __device__ __forceinline__ Complex<T> conjugate(Complex<T> a) {
  Complex<T> mirrored = {a.re, -a.im};
  return mirrored;
}

template <class T> __device__ __forceinline__ T zero_of(T *) { return (T)0; }
__device__ __forceinline__ Half zero_of(Half *) { Half v = {0}; return v; }
__device__ __forceinline__ BFloat zero_of(BFloat *) { BFloat v = {0}; return v; }
template <class T> __device__ __forceinline__ Complex<T> zero_of(Complex<T> *) { Complex<T> v = {(T)0, (T)0}; return v; }
#define ZERO(T) zero_of((T *)0)

// --- geometry

// The order of the fields is that of numconv_cupy.source.FIELDS, all of 8 bytes. Strides are in elements: of batch, channel and
// the spatial axes. What `a`, `b` and `y` are is said by each kernel.
struct Geometry {
  i64 n, c, k, groups;
  i64 pad_mode, flip, activation, parts;
  i64 channels_fastest, bias_step, count_padding;
  double p;
  i64 spatial[NDIM], window[NDIM], output[NDIM], stride[NDIM], low[NDIM], high[NDIM], dilation[NDIM];
  i64 first[NDIM], count[NDIM];  // the box of positions that a launch computes
  i64 a[NDIM + 2], b[NDIM + 2], y[NDIM + 2];
};
static_assert(sizeof(Geometry) == GEOMETRY_BYTES, "the host packs another geometry");

enum { ZEROS, REFLECT, SYMMETRIC, REPLICATE, CIRCULAR };

__device__ __forceinline__ int modulo(int value, int period) {
  int rest = value % period;
  return rest < 0 ? rest + period : rest;
}

// The position of x that position i of an axis reads, where i may lie in the padding; -1 for a padding zero.
__device__ __forceinline__ int source(const Geometry &g, int axis, int i) {
  int size = (int)g.spatial[axis];
  if (i >= 0 && i < size) return i;
  switch ((int)g.pad_mode) {
    case REFLECT:
      if (size == 1) return 0;
      i = modulo(i, 2 * size - 2);
      return i < size ? i : 2 * size - 2 - i;
    case SYMMETRIC:
      i = modulo(i, 2 * size);
      return i < size ? i : 2 * size - 1 - i;
    case REPLICATE:
      return i < 0 ? 0 : size - 1;
    case CIRCULAR:
      return modulo(i, size);
    default:
      return -1;
  }
}

// What a tap of an output reads along an axis.
__device__ __forceinline__ int read_by(const Geometry &g, int axis, int output, int tap) {
  return source(g, axis, output * (int)g.stride[axis] + tap * (int)g.dilation[axis] - (int)g.low[axis]);
}

__device__ __forceinline__ int at_or_after(int residue, int from, int period) { return from + modulo(residue - from, period); }

// The first position at or after `from`, counted from 0 at the first padded one, that reads position i of x; INT_MAX: none.
__device__ __forceinline__ int first_reader(const Geometry &g, int axis, int i, int from) {
  const int none = 0x7fffffff;
  int size = (int)g.spatial[axis], low = (int)g.low[axis], own = i + low;
  switch ((int)g.pad_mode) {
    case REFLECT:
      if (size == 1) return from;
      return min(at_or_after(own, from, 2 * size - 2), at_or_after(low - i, from, 2 * size - 2));
    case SYMMETRIC:
      return min(at_or_after(own, from, 2 * size), at_or_after(low - 1 - i, from, 2 * size));
    case REPLICATE:
      if (i == 0 && from <= low) return from;
      if (i == size - 1) return max(own, from);
      return own >= from ? own : none;
    case CIRCULAR:
      return at_or_after(own, from, size);
    default:
      return own >= from ? own : none;
  }
}

// The first output after `after` of which a tap reads position i of x along an axis; -1: none.
__device__ __forceinline__ int next_output(const Geometry &g, int axis, int i, int tap, int after) {
  int stride = (int)g.stride[axis], shift = tap * (int)g.dilation[axis];
  int last = ((int)g.output[axis] - 1) * stride + shift;
  int from = (after + 1) * stride + shift;
  while (from <= last) {
    int reader = first_reader(g, axis, i, from);
    if (reader > last) return -1;
    if ((reader - shift) % stride == 0) return (reader - shift) / stride;
    from = reader + 1;
  }
  return -1;
}

// The outputs of which the tap `t` reads position i of x, in row-major order: `for (bool some = first_output(...); some; some =
// following_output(...))`. Only padding that copies values makes them more than one.
__device__ __forceinline__ bool first_output(const Geometry &g, const int *i, const int *t, int *q) {
  bool some = true;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    q[axis] = next_output(g, axis, i[axis], t[axis], -1);
    some = some && q[axis] >= 0;
  }
  return some;
}

__device__ __forceinline__ bool following_output(const Geometry &g, const int *i, const int *t, int *q) {
  if (g.pad_mode == ZEROS) return false;
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    q[axis] = next_output(g, axis, i[axis], t[axis], q[axis]);
    if (q[axis] >= 0) return true;
    q[axis] = next_output(g, axis, i[axis], t[axis], -1);
  }
  return false;
}

// --- counting

__device__ __forceinline__ i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ __forceinline__ i64 product(const i64 *sizes) {
  i64 all = 1;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) all *= sizes[axis];
  return all;
}

// Takes the position in a volume off a row-major index, and returns what is left.
__device__ __forceinline__ i64 unravel(i64 index, const i64 *sizes, int *position) {
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    position[axis] = (int)(index % sizes[axis]);
    index /= sizes[axis];
  }
  return index;
}

// The next position in row-major order; false after the last.
__device__ __forceinline__ bool advance(const i64 *sizes, int *position) {
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    if (++position[axis] < sizes[axis]) return true;
    position[axis] = 0;
  }
  return false;
}

__device__ __forceinline__ i64 ravel(const i64 *sizes, const int *position) {
  i64 index = 0;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) index = index * sizes[axis] + position[axis];
  return index;
}

__device__ __forceinline__ void clear(int *position) {
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) position[axis] = 0;
}

// The offset of an element, in elements.
__device__ __forceinline__ i64 at(const i64 *strides, i64 image, i64 channel, const int *position) {
  i64 offset = image * strides[0] + channel * strides[1];
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) offset += position[axis] * strides[2 + axis];
  return offset;
}
