// What becomes of a sum: bias, activation, one rounding.

enum { NONE, RELU, SILU, GELU };

// x / (1 + exp(-x)), and the exact x * erfc(-x / sqrt(2)) / 2. A call, since a thread may end many sums.
__device__ __noinline__ float curved(float v, int activation) {
  return activation == SILU ? v / (1.0f + expf(-v)) : 0.5f * v * erfcf(v * -0.70710678118654752f);
}
__device__ __noinline__ double curved(double v, int activation) {
  return activation == SILU ? v / (1.0 + exp(-v)) : 0.5 * v * erfc(v * -0.70710678118654752);
}
template <class T> __device__ __forceinline__ T curved(T v, int) { return v; }

template <class T> __device__ __forceinline__ T activated(T v, int activation) {
  if (activation > RELU) return curved(v, activation);
  return activation == RELU && v < (T)0 ? (T)0 : v;
}
template <class T> __device__ __forceinline__ Complex<T> activated(Complex<T> v, int) { return v; }

__device__ __forceinline__ OUT finished(const Geometry &g, ACC sum, const IN *bias, int channel) {
  if (bias) sum = plus(sum, wide(bias[channel * g.bias_step]));
  return narrow(activated(sum, (int)g.activation));
}

__device__ __forceinline__ void finish(const Geometry &g, ACC sum, const IN *bias, int channel, OUT *y) {
  *y = finished(g, sum, bias, channel);
}
