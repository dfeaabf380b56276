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
