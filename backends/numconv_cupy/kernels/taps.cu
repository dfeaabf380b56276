// The gradient of w where few channels belong together: a thread has TH x TW taps of one pair of channels in registers and goes through
// positions of y, so that neighbouring threads read neighbouring values; then the sums of a block's threads are added up.
//
// Sums have a fixed order, which is none of accuracy="strict": by thread, by block, by part.

enum { LAST = NDIM - 1, ABOVE = NDIM > 1 ? NDIM - 2 : 0, THREADS = 256, ROUND = 8, LANES = THREADS / ROUND };

// Takes a group of taps of an axis off an index: the first of them.
__device__ __forceinline__ int group_of(int &index, int taps, int size) { return take(index, (taps + size - 1) / size) * size; }

// Partial sums [parts, K, C/G, *R]. a: grad_y, b: x. The block's place is (part, channel of y, channel of x, group of taps).
extern "C" __global__ void __launch_bounds__(THREADS) conv_taps(Geometry g, const IN *grad_y, const IN *x, ACC *sums) {
  __shared__ ACC shared[ROUND][THREADS];
  const int thread = (int)threadIdx.x, inputs = divided(g.c, g.groups);
  Axis axes[NDIM];
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) axes[axis] = axis_of(g, axis, false, 0);

  int index = (int)blockIdx.x, first[NDIM];
  first[LAST] = group_of(index, axes[LAST].taps, TW);
  if (NDIM > 1) first[ABOVE] = group_of(index, axes[ABOVE].taps, TH);
#pragma unroll
  for (int axis = NDIM - 3; axis >= 0; --axis) first[axis] = take(index, axes[axis].taps);
  const int input = take(index, inputs), k = take(index, (int)g.k), part = index;
  const int all = (int)(g.n * product(g.output)), length = divided(all + g.parts - 1, g.parts);
  const int end = min((part + 1) * length, all);
  grad_y += k * g.a[1];
  x += (divided(k, divided(g.k, g.groups)) * inputs + input) * g.b[1];

  // The thread's position, and how far it is to its next.
  int item = part * length + thread, image = item, hop_images = THREADS, q[NDIM], hop[NDIM];
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    q[axis] = take(image, (int)g.output[axis]);
    hop[axis] = take(hop_images, (int)g.output[axis]);
  }

  ACC own[TH][TW];
#pragma unroll
  for (int i = 0; i < TH; ++i)
#pragma unroll
    for (int j = 0; j < TW; ++j) own[i][j] = ZERO(ACC);
  const int across = axes[LAST].apart, down = axes[ABOVE].apart;
  const i64 step_across = across * g.b[2 + LAST], step_down = down * g.b[2 + ABOVE];
#pragma unroll 1
  for (; item < end; item += THREADS) {
    i64 offset = image * g.b[0];
    bool inside = true;
    int place[NDIM];
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) {
      place[axis] = q[axis] * axes[axis].scale + axes[axis].at + first[axis] * axes[axis].apart;
      offset += place[axis] * g.b[2 + axis];
      if (axis < NDIM - 2) inside = inside && (unsigned)place[axis] < (unsigned)axes[axis].size;
    }
    const ACC gradient = wide(grad_y[at(g.a, image, 0, q)]);
#pragma unroll
    for (int i = 0; i < TH; ++i) {
      const bool row = inside && (NDIM == 1 || (unsigned)(place[ABOVE] + i * down) < (unsigned)axes[ABOVE].size);
#pragma unroll
      for (int j = 0; j < TW; ++j)
        if (row && (unsigned)(place[LAST] + j * across) < (unsigned)axes[LAST].size)
          own[i][j] = madd(gradient, conjugate(wide(x[offset + (NDIM > 1 ? i * step_down : 0) + j * step_across])), own[i][j]);
    }
    int carry = 0;
#pragma unroll
    for (int axis = NDIM - 1; axis >= 0; --axis) {
      q[axis] += hop[axis] + carry;
      carry = q[axis] >= (int)g.output[axis];
      if (carry) q[axis] -= (int)g.output[axis];
    }
    image += hop_images + carry;
  }

  // ROUND taps at a time: LANES threads each add up a tap's sums, and one of them theirs.
  const i64 taps = product(g.window);
  sums += ((part * g.k + k) * (i64)inputs + input) * taps;
  const int lane = thread % LANES, mine = thread / LANES;
#pragma unroll
  for (int begin = 0; begin < TH * TW; begin += ROUND) {
    __syncthreads();
#pragma unroll
    for (int l = 0; l < ROUND; ++l)
      if (begin + l < TH * TW) shared[l][thread] = own[(begin + l) / TW % TH][(begin + l) % TW];
    __syncthreads();
    ACC sum = shared[mine][lane];
#pragma unroll
    for (int l = LANES; l < THREADS; l += LANES) sum = plus(sum, shared[mine][l + lane]);
    __syncthreads();
    shared[mine][lane] = sum;
    __syncthreads();
    int tap = begin + mine, row = tap / TW, column = first[LAST] + tap % TW;
    if (lane || tap >= TH * TW) continue;
    i64 where = 0;
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) {
      int m = axis == LAST ? column : first[axis] + (axis == NDIM - 2 ? row : 0);
      if (m >= axes[axis].taps) where = -1;
      if (where >= 0) where = where * axes[axis].taps + m;
    }
    if (where < 0) continue;
    for (int l = 1; l < LANES; ++l) sum = plus(sum, shared[mine][l]);
    sums[where] = sum;
  }
}
