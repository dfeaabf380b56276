// Sums over all images and positions: the gradient of w where few channels belong together, and that of the bias. Neighbouring threads
// go through neighbouring positions with sums of their own in registers, then the threads of a block add theirs up.
//
// Sums have a fixed order, which is none of accuracy="strict": by thread, by block, by part.

enum { LAST = NDIM - 1, ABOVE = NDIM > 1 ? NDIM - 2 : 0, THREADS = 256, ROUND = 8, LANES = THREADS / ROUND };

// The positions [N, *count] of a part that one thread goes through, THREADS apart.
struct Walk { int item, end, image, q[NDIM], hop_images, hop[NDIM]; };

__device__ __forceinline__ Walk walk_of(const Geometry &g, int part) {
  const int all = (int)(g.n * product(g.count)), length = divided(all + g.parts - 1, g.parts);
  Walk walk;
  walk.item = part * length + (int)threadIdx.x;
  walk.end = min((part + 1) * length, all);
  walk.image = walk.item;
  walk.hop_images = THREADS;
#pragma unroll
  for (int axis = LAST; axis >= 0; --axis) {
    walk.q[axis] = take(walk.image, (int)g.count[axis]);
    walk.hop[axis] = take(walk.hop_images, (int)g.count[axis]);
  }
  return walk;
}

__device__ __forceinline__ void go_on(const Geometry &g, Walk &walk) {
  int carry = 0;
#pragma unroll
  for (int axis = LAST; axis >= 0; --axis) {
    walk.q[axis] += walk.hop[axis] + carry;
    carry = walk.q[axis] >= (int)g.count[axis];
    if (carry) walk.q[axis] -= (int)g.count[axis];
  }
  walk.image += walk.hop_images + carry;
  walk.item += THREADS;
}

typedef ACC Shared[ROUND][THREADS];

// Adds up ROUND sums of all threads: the first of LANES threads gets the one that is thread / LANES.
__device__ __forceinline__ ACC of_block(const ACC *own, int count, Shared &shared) {
  const int thread = (int)threadIdx.x, lane = thread % LANES, mine = thread / LANES;
  __syncthreads();
#pragma unroll
  for (int l = 0; l < ROUND; ++l)
    if (l < count) shared[l][thread] = own[l];
  __syncthreads();
  ACC sum = ZERO(ACC);
  if (mine < count)
#pragma unroll
    for (int l = 0; l < THREADS; l += LANES) sum = l ? plus(sum, shared[mine][l + lane]) : shared[mine][lane];
  __syncthreads();
  shared[mine][lane] = sum;
  __syncthreads();
  if (!lane && mine < count)
    for (int l = 1; l < LANES; ++l) sum = plus(sum, shared[mine][l]);
  return sum;
}

#ifdef CONV_TAPS

// Takes a group of taps of an axis off an index: the first of them.
__device__ __forceinline__ int group_of(int &index, int taps, int size) { return take(index, (taps + size - 1) / size) * size; }

// Adds what TH x TW taps from `first` on multiply at a position.
__device__ __forceinline__ void add(const Geometry &g, const Axis *axes, const int *first, const Walk &walk, ACC gradient, const IN *x, ACC *own) {
  const int across = axes[LAST].apart, down = axes[ABOVE].apart;
  i64 offset = walk.image * g.b[0];
  bool inside = true;
  int place[NDIM];
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    place[axis] = walk.q[axis] * axes[axis].scale + axes[axis].at + first[axis] * axes[axis].apart;
    offset += place[axis] * g.b[2 + axis];
    if (axis < NDIM - 2) inside = inside && (unsigned)place[axis] < (unsigned)axes[axis].size;
  }
#pragma unroll
  for (int i = 0; i < TH; ++i) {
    const bool row = inside && (NDIM == 1 || (unsigned)(place[ABOVE] + i * down) < (unsigned)axes[ABOVE].size);
    const IN *from = x + offset + (NDIM > 1 ? i * down * g.b[2 + ABOVE] : 0);
#pragma unroll
    for (int j = 0; j < TW; ++j)
      if (row && (unsigned)(place[LAST] + j * across) < (unsigned)axes[LAST].size)
        own[i * TW + j] = madd(gradient, conjugate(wide(from[j * across * g.b[2 + LAST]])), own[i * TW + j]);
  }
}

// Partial sums [parts, K, C/G, *R]. A thread has TH x TW taps. a: grad_y, b: x. The block's place is (part, channel of y, channel of x,
// group of taps).
extern "C" __global__ void __launch_bounds__(THREADS) conv_taps(Geometry g, const IN *grad_y, const IN *x, ACC *sums) {
  __shared__ Shared shared;
  const int inputs = divided(g.c, g.groups);
  Axis axes[NDIM];
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) axes[axis] = axis_of(g, axis, false, 0);
  int index = (int)blockIdx.x, first[NDIM];
  first[LAST] = group_of(index, axes[LAST].taps, TW);
  if (NDIM > 1) first[ABOVE] = group_of(index, axes[ABOVE].taps, TH);
#pragma unroll
  for (int axis = NDIM - 3; axis >= 0; --axis) first[axis] = take(index, axes[axis].taps);
  const int input = take(index, inputs), k = take(index, (int)g.k), part = index;
  grad_y += k * g.a[1];
  x += (divided(k, divided(g.k, g.groups)) * inputs + input) * g.b[1];

  ACC own[TH * TW];
#pragma unroll
  for (int i = 0; i < TH * TW; ++i) own[i] = ZERO(ACC);
#pragma unroll 1
  for (Walk walk = walk_of(g, part); walk.item < walk.end; go_on(g, walk))
    add(g, axes, first, walk, wide(grad_y[at(g.a, walk.image, 0, walk.q)]), x, own);

  sums += ((part * g.k + k) * (i64)inputs + input) * product(g.window);
#pragma unroll
  for (int begin = 0; begin < TH * TW; begin += ROUND) {
    ACC sum = of_block(own + begin, min((int)ROUND, TH * TW - begin), shared);
    int tap = begin + (int)threadIdx.x / LANES, place[NDIM];
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) place[axis] = first[axis] + (axis == LAST ? tap % TW : axis == NDIM - 2 ? tap / TW : 0);
    bool there = threadIdx.x % LANES == 0 && tap < TH * TW;
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) there = there && place[axis] < axes[axis].taps;
    if (there) sums[ravel(g.window, place)] = sum;
  }
}

#endif

#ifdef CHANNEL_TOTALS

// Partial sums [parts, channels] over all but the channels of an array [N, channels, *count]. The block's place is (part, channel).
extern "C" __global__ void __launch_bounds__(THREADS) channel_totals(Geometry g, i64 channels, const IN *values, ACC *sums) {
  __shared__ Shared shared;
  const int part = divided(blockIdx.x, channels), channel = (int)blockIdx.x - part * (int)channels;
  ACC own = ZERO(ACC);
#pragma unroll 1
  for (Walk walk = walk_of(g, part); walk.item < walk.end; go_on(g, walk))
    own = plus(own, wide(values[at(g.a, walk.image, channel, walk.q)]));
  ACC sum = of_block(&own, 1, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

#endif
