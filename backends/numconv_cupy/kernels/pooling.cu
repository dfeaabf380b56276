// Pooling over windows and its gradients: one thread owns one element of the result, or one share of a channel's positions.
// Padding takes part in nothing. a: the input, b: a second one, y: the output; each kernel says which.

// A thread's element of [N, C, *sizes]; false beyond the end.
__device__ __forceinline__ bool element(const Geometry &g, const i64 *sizes, i64 *image, i64 *channel, int *position) {
  i64 item = thread_index();
  if (item >= g.n * g.c * product(sizes)) return false;
  i64 rest = unravel(item, sizes, position);
  *channel = rest % g.c;
  *image = rest / g.c;
  return true;
}

// What the tap `t` of the output `q` reads; false for padding.
__device__ __forceinline__ bool read_position(const Geometry &g, const int *q, const int *t, int *i) {
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    i[axis] = read_by(g, axis, q[axis], t[axis]);
    inside = inside && i[axis] >= 0;
  }
  return inside;
}

#ifdef MAX_POOL

// The largest element of each window, the first of equals, the first NaN before all; flat positions in x to `indices` [N, C, *Q]
// with the strides b, unless it is null; no maxima if y is null. a: x.
extern "C" __global__ void max_pool(Geometry g, const IN *x, OUT *y, i64 *indices) {
  i64 image, channel, winner = -1;
  int q[NDIM], t[NDIM], i[NDIM];
  if (!element(g, g.output, &image, &channel, q)) return;
  ACC largest = ZERO(ACC);
  clear(t);
  do {
    if (!read_position(g, q, t, i)) continue;
    ACC value = wide(x[at(g.a, image, channel, i)]);
    if (winner < 0 || value > largest || (value != value && largest == largest)) {
      largest = value;
      winner = ravel(g.spatial, i);
    }
  } while (advance(g.window, t));
  if (y) y[at(g.y, image, channel, q)] = narrow(largest);
  if (indices) indices[at(g.b, image, channel, q)] = winner;
}

#endif

#ifdef ADD_AT_WINNERS

// Sums [N, C, *S] of grad_y at `indices`, in the order of grad_y. The positions of a channel are dealt out to `shares` threads,
// each of which reads all indices; an index outside the channel belongs to nobody. a: grad_y, b: indices.
extern "C" __global__ void add_at_winners(Geometry g, i64 shares, const IN *grad_y, const i64 *indices, ACC *sums) {
  i64 item = thread_index(), share = item % shares, channel = item / shares % g.c, image = item / shares / g.c;
  i64 volume = product(g.spatial);
  int q[NDIM];
  if (image >= g.n) return;
  ACC *own = sums + (image * g.c + channel) * volume;
  for (i64 i = share; i < volume; i += shares) own[i] = ZERO(ACC);
  clear(q);
  do {
    i64 winner = indices[at(g.b, image, channel, q)];
    if (winner >= 0 && winner < volume && winner % shares == share)
      own[winner] = plus(own[winner], wide(grad_y[at(g.a, image, channel, q)]));
  } while (advance(g.output, q));
}

#endif

#if defined(AVG_POOL) || defined(AVG_POOL_BACKWARD)

// The number by which the sum of a window is divided.
__device__ __forceinline__ i64 counted(const Geometry &g, const int *q) {
  i64 all = 1;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    int here = 0;
    for (int t = 0; t < (int)g.window[axis]; ++t) {
      int i = q[axis] * (int)g.stride[axis] + t * (int)g.dilation[axis] - (int)g.low[axis];
      here += g.count_padding ? i < (int)(g.spatial[axis] + g.high[axis]) : i >= 0 && i < (int)g.spatial[axis];
    }
    all *= here;
  }
  return all;
}

template <class T> __device__ __forceinline__ T divided(T sum, i64 count) { return sum / (T)count; }
template <class T> __device__ __forceinline__ Complex<T> divided(Complex<T> sum, i64 count) {
  Complex<T> share = {sum.re / (T)count, sum.im / (T)count};
  return share;
}

#endif

#ifdef AVG_POOL

// a: x.
extern "C" __global__ void avg_pool(Geometry g, const IN *x, OUT *y) {
  i64 image, channel;
  int q[NDIM], t[NDIM], i[NDIM];
  if (!element(g, g.output, &image, &channel, q)) return;
  ACC sum = ZERO(ACC);
  clear(t);
  do {
    if (read_position(g, q, t, i)) sum = plus(sum, wide(x[at(g.a, image, channel, i)]));
  } while (advance(g.window, t));
  y[at(g.y, image, channel, q)] = narrow(divided(sum, counted(g, q)));
}

#endif

#ifdef AVG_POOL_BACKWARD

// a: grad_y.
extern "C" __global__ void avg_pool_backward(Geometry g, const IN *grad_y, OUT *grad_x) {
  i64 image, channel;
  int q[NDIM], t[NDIM], i[NDIM];
  if (!element(g, g.spatial, &image, &channel, i)) return;
  ACC sum = ZERO(ACC);
  clear(t);
  do {
    if (first_output(g, i, t, q)) sum = plus(sum, divided(wide(grad_y[at(g.a, image, channel, q)]), counted(g, q)));
  } while (advance(g.window, t));
  grad_x[at(g.y, image, channel, i)] = narrow(sum);
}

#endif

#if defined(LP_POOL) || defined(LP_POOL_BACKWARD)

__device__ __forceinline__ float power(float base, double p) {
  return p == 1 ? base : p == 2 ? base * base : p == 0.5 ? sqrtf(base) : powf(base, (float)p);
}
__device__ __forceinline__ double power(double base, double p) {
  return p == 1 ? base : p == 2 ? base * base : p == 0.5 ? sqrt(base) : pow(base, p);
}
__device__ __forceinline__ float size_of(float v) { return fabsf(v); }
__device__ __forceinline__ double size_of(double v) { return fabs(v); }

#endif

#ifdef LP_POOL

// a: x.
extern "C" __global__ void lp_pool(Geometry g, const IN *x, OUT *y) {
  i64 image, channel;
  int q[NDIM], t[NDIM], i[NDIM];
  if (!element(g, g.output, &image, &channel, q)) return;
  ACC sum = 0;
  clear(t);
  do {
    if (read_position(g, q, t, i)) sum += power(size_of(wide(x[at(g.a, image, channel, i)])), g.p);
  } while (advance(g.window, t));
  y[at(g.y, image, channel, q)] = narrow(power(sum, 1 / g.p));
}

#endif

#ifdef LP_POOL_BACKWARD

// The sum of grad_y * sign(x) * |x|^(p - 1) * y^(1 - p): 0 where x or y is, NaN in a window that holds a NaN. `means` is y
// [N, C, *Q] in the type of the sums. a: grad_y, b: x.
extern "C" __global__ void lp_pool_backward(Geometry g, const IN *grad_y, const IN *x, const ACC *means, OUT *grad_x) {
  i64 image, channel;
  int q[NDIM], t[NDIM], i[NDIM];
  if (!element(g, g.spatial, &image, &channel, i)) return;
  ACC value = wide(x[at(g.b, image, channel, i)]), sum = 0;
  clear(t);
  do {
    if (!first_output(g, i, t, q)) continue;
    ACC mean = means[(image * g.c + channel) * product(g.output) + ravel(g.output, q)], slope = 0;
    if (mean != mean)
      slope = mean;
    else if (value != 0 && mean != 0)
      slope = (value > 0 ? 1 : -1) * power(size_of(value), g.p - 1) * power(mean, 1 - g.p);
    sum += wide(grad_y[at(g.a, image, channel, q)]) * slope;
  } while (advance(g.window, t));
  grad_x[at(g.y, image, channel, i)] = narrow(sum);
}

#endif
