// The gradient of the bias: sums over all positions of each channel. A block of THREADS threads sums a part of one channel, always in
// the same order; the parts are added up by a thread a channel.

#define NUMCONV_BARRIERS
enum { THREADS = 128 };

struct Slices {
  i64 threads, channels, parts, terms, most;  // terms of a channel, and the most of a part
  Divisor by_channels, by_pixels, by_axis[NDIM];
};
static_assert(sizeof(Slices) == SLICES_BYTES, "the host packs another record");

#if defined(SUM_POSITIONS)

// a: the values, whose positions are those of y or of x.
extern "C" __global__ void sum_positions(const Geometry g, const Slices s, const IN *values, ACC *sums) {
  __shared__ ACC shared[THREADS];
  unsigned channel = blockIdx.x, part = divide(channel, s.by_channels);
  unsigned begin = part * (unsigned)s.most, end = (unsigned)min(s.terms, (i64)begin + s.most);
  ACC sum = ZERO(ACC);
  for (unsigned term = begin + threadIdx.x; term < end; term += THREADS) {
    unsigned pixel = term, image = divide(pixel, s.by_pixels);
    int position[NDIM];
#pragma unroll
    for (int axis = NDIM - 1; axis > 0; --axis) {
      unsigned rest = pixel;
      pixel = divide(rest, s.by_axis[axis]);
      position[axis] = (int)rest;
    }
    position[0] = (int)pixel;
    sum = plus(sum, wide(values[at(g.a, image, channel, position)]));
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] = plus(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shared[0];
}

#elif defined(STORE_BIAS)

extern "C" __global__ void store_bias(const Slices s, const ACC *sums, OUT *out, i64 step) {
  i64 channel = thread_index();
  if (channel >= s.channels) return;
  ACC sum = ZERO(ACC);
  for (int part = 0; part < (int)s.parts; ++part) sum = plus(sum, sums[part * s.channels + channel]);
  out[channel * step] = narrow(sum);
}

#endif
