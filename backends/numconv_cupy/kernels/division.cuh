// What prepared kernels share: division by known numbers, positions of an index, and what is computed again.

// Division of 32-bit numbers by what the host knows (Granlund and Montgomery, "Division by invariant integers", 1994): a product, an
// addition and a shift where a division would take twenty instructions. Numerators are below 2^31.
#ifdef NUMCONV_HOST
struct int4 { int x, y, z, w; };
#endif

struct Divisor { unsigned by, magic, shift, unused; };

__device__ __forceinline__ unsigned upper_half(unsigned a, unsigned b) {
#ifdef NUMCONV_HOST
  return (unsigned)(((unsigned long long)a * b) >> 32);
#else
  return __umulhi(a, b);
#endif
}

__device__ __forceinline__ unsigned quotient(unsigned value, const Divisor &d) {
  return (upper_half(value, d.magic) + value) >> d.shift;
}

// Returns value / d and leaves value % d.
__device__ __forceinline__ unsigned divide(unsigned &value, const Divisor &d) {
  unsigned whole = quotient(value, d);
  value -= whole * d.by;
  return whole;
}

__device__ __forceinline__ bool is_finite(float v) { return v - v == 0; }
__device__ __forceinline__ bool is_finite(double v) { return v - v == 0; }

// Takes a position off a row-major index below 2^31.
__device__ __forceinline__ void split(unsigned index, const Divisor *sizes, int *position) {
#pragma unroll
  for (int axis = NDIM - 1; axis > 0; --axis) {
    unsigned rest = index;
    index = divide(rest, sizes[axis]);
    position[axis] = (int)rest;
  }
  position[0] = (int)index;
}

// An element of the gradient of w, term by term in double precision: a is grad_y, b is x; the tap is where it reads.
__device__ double gradient_of(const Geometry &g, const IN *grad_y, const IN *x, int k, int c, const int *tap) {
  double sum = 0;
  for (int image = 0; image < (int)g.n; ++image) {
    int o[NDIM];
    clear(o);
    do {
      int i[NDIM];
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) {
        i[axis] = read_by(g, axis, o[axis], tap[axis]);
        inside = inside && i[axis] >= 0;
      }
      if (inside) sum += (double)wide(grad_y[at(g.a, image, k, o)]) * (double)wide(x[at(g.b, image, c, i)]);
    } while (advance(g.output, o));
  }
  return sum;
}
