// Direct convolution and its gradients, for any problem. Sums are chains of fused multiply-adds in the order of accuracy="strict":
// channel, then w row-major (for grad_x: then y row-major); for grad_w: n, then y row-major. Padding zeros are no terms.

#if defined(CONV_FORWARD) || defined(CONV_INPUT_GRAD)

// A thread's result in [N, channels, box]; false beyond the end.
__device__ __forceinline__ bool locate(const Geometry &g, i64 channels, i64 *image, i64 *channel, int *position) {
  i64 item = thread_index(), pixels = g.n * product(g.count);
  if (item >= pixels * channels) return false;
  *channel = g.channels_fastest ? item % channels : item / pixels;
  *image = unravel(g.channels_fastest ? item / channels : item % pixels, g.count, position);
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) position[axis] += (int)g.first[axis];
  return true;
}

__device__ __forceinline__ int mirrored(const Geometry &g, int axis, int tap) {
  return g.flip ? (int)g.window[axis] - 1 - tap : tap;
}

#endif

#ifdef CONV_FORWARD

// y = x * w + bias. a: x, b: w, y: y. Images whose `redo` is false are left as they are.
extern "C" __global__ void conv_forward(Geometry g, const IN *x, const IN *w, const IN *bias, OUT *y, const bool *redo) {
  i64 inputs = g.c / g.groups, image, k;
  int q[NDIM], t[NDIM];
  if (!locate(g, g.k, &image, &k, q)) return;
  if (redo && !redo[image]) return;
  x += image * g.a[0] + k / (g.k / g.groups) * inputs * g.a[1];
  ACC sum = ZERO(ACC);
  for (i64 c = 0; c < inputs; ++c) {
    clear(t);
    do {
      i64 offset = c * g.a[1];
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) {
        int i = read_by(g, axis, q[axis], mirrored(g, axis, t[axis]));
        inside = inside && i >= 0;
        offset += i * g.a[2 + axis];
      }
      if (inside) sum = madd(wide(x[offset]), wide(w[at(g.b, k, c, t)]), sum);
    } while (advance(g.window, t));
  }
  finish(g, sum, bias, (int)k, y + at(g.y, image, k, q));
}

#endif

#ifdef CONV_INPUT_GRAD

// grad_x from grad_y and w. a: grad_y, b: w, y: grad_x.
extern "C" __global__ void conv_input_grad(Geometry g, const IN *grad_y, const IN *w, const IN *bias, OUT *grad_x,
                                           const bool *redo) {
  i64 inputs = g.c / g.groups, outputs = g.k / g.groups, image, channel;
  int i[NDIM], q[NDIM], t[NDIM], tap[NDIM];
  if (!locate(g, g.c, &image, &channel, i)) return;
  if (redo && !redo[image]) return;
  i64 group = channel / inputs;
  ACC sum = ZERO(ACC);
  for (i64 k = group * outputs; k < (group + 1) * outputs; ++k) {
    clear(t);
    do {
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) tap[axis] = mirrored(g, axis, t[axis]);
      for (bool some = first_output(g, i, tap, q); some; some = following_output(g, i, tap, q))
        sum = madd(wide(grad_y[at(g.a, image, k, q)]), conjugate(wide(w[at(g.b, k, channel % inputs, t)])), sum);
    } while (advance(g.window, t));
  }
  finish(g, sum, bias, (int)channel, grad_x + at(g.y, image, channel, i));
}

#endif

#ifdef CONV_WEIGHT_GRAD

// The outputs [N, *Q], row-major, are cut into g.parts parts of one length.
__device__ __forceinline__ void part_of(const Geometry &g, i64 part, i64 *begin, i64 *end) {
  i64 all = g.n * product(g.count), length = (all + g.parts - 1) / g.parts;
  *begin = min(part * length, all);
  *end = min(*begin + length, all);
}

// Partial sums [parts, K, C/G, *R] of the gradient of w. a: grad_y, b: x.
extern "C" __global__ void conv_weight_grad(Geometry g, const IN *grad_y, const IN *x, ACC *sums, const bool *redo) {
  i64 inputs = g.c / g.groups, item = thread_index(), begin, end;
  int t[NDIM], q[NDIM];
  if (item >= g.parts * g.k * inputs * product(g.window)) return;
  if (redo && !redo[0]) return;
  i64 rest = unravel(item, g.window, t), c = rest % inputs, k = rest / inputs % g.k;
  part_of(g, rest / inputs / g.k, &begin, &end);
  if (g.flip)
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) t[axis] = (int)g.window[axis] - 1 - t[axis];
  c += k / (g.k / g.groups) * inputs;
  i64 image = unravel(begin, g.count, q);
  ACC sum = ZERO(ACC);
  for (i64 output = begin; output < end; ++output) {
    i64 offset = image * g.b[0] + c * g.b[1];
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) {
      int i = read_by(g, axis, q[axis], t[axis]);
      inside = inside && i >= 0;
      offset += i * g.b[2 + axis];
    }
    if (inside) sum = madd(wide(grad_y[at(g.a, image, k, q)]), conjugate(wide(x[offset])), sum);
    if (!advance(g.count, q)) ++image;
  }
  sums[item] = sum;
}

// Partial sums [parts, channels] over all but the channels of an array [N, channels, *count]: the gradient of a bias.
extern "C" __global__ void channel_sums(Geometry g, i64 channels, const IN *values, ACC *sums) {
  i64 item = thread_index(), begin, end;
  int q[NDIM];
  if (item >= g.parts * channels) return;
  part_of(g, item / channels, &begin, &end);
  i64 image = unravel(begin, g.count, q);
  ACC sum = ZERO(ACC);
  for (i64 output = begin; output < end; ++output) {
    sum = plus(sum, wide(values[at(g.a, image, item % channels, q)]));
    if (!advance(g.count, q)) ++image;
  }
  sums[item] = sum;
}

#endif

#ifdef STORE_SUMS

// out [d0, d1, *count] from partial sums [parts, d0, d1, *count], added up in the order of the parts. y: out.
extern "C" __global__ void store_sums(Geometry g, i64 d0, i64 d1, const ACC *sums, OUT *out, const bool *redo) {
  i64 item = thread_index(), all = d0 * d1 * product(g.count);
  int position[NDIM];
  if (item >= all) return;
  if (redo && !redo[0]) return;
  ACC sum = sums[item];
#pragma unroll 8
  for (int part = 1; part < (int)g.parts; ++part) sum = plus(sum, sums[part * all + item]);
  i64 rest = unravel(item, g.count, position);
  out[at(g.y, rest / d1, rest % d1, position)] = narrow(sum);
}

#endif
