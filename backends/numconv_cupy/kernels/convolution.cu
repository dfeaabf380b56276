// Direct convolution and its gradients, for any problem. Sums are chains of fused multiply-adds in the order of accuracy="strict":
// channel, then w row-major (for grad_x: then y row-major); for grad_w: n, then y row-major. Padding zeros are no terms.
//
// KT output channels and PT outputs that are neighbours on the last axis are one thread's tile. With SLIDE (stride equal to
// dilation on the last axis, no flip) a value of x moves from output to output instead of being loaded for each tap.

#if defined(CONV_FORWARD) || defined(CONV_INPUT_GRAD)

// A thread's share of [N, groups * tiles of channels, box / PT]: image, tile and the first position; false beyond the end.
__device__ __forceinline__ bool locate(const Geometry &g, i64 tiles, i64 *image, i64 *tile, int *position) {
  i64 runs[NDIM], item = thread_index();
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) runs[axis] = g.count[axis];
  runs[NDIM - 1] = (g.count[NDIM - 1] + PT - 1) / PT;
  i64 pixels = g.n * product(runs);
  if (item >= pixels * tiles) return false;
  *tile = g.channels_fastest ? item % tiles : item / pixels;
  *image = unravel(g.channels_fastest ? item / tiles : item % pixels, runs, position);
  position[NDIM - 1] *= PT;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) position[axis] += (int)g.first[axis];
  return true;
}

#endif

#ifdef CONV_FORWARD

__device__ __forceinline__ ACC value_at(const Geometry &g, const IN *row, int output, int tap, bool *inside) {
  int i = read_by(g, NDIM - 1, output, tap);
  *inside = i >= 0;
  return i >= 0 ? wide(row[i * g.a[NDIM + 1]]) : ZERO(ACC);
}

// y = x * w + bias. a: x, b: w, y: y. Images whose `redo` is false are left as they are.
extern "C" __global__ void conv_forward(Geometry g, const IN *x, const IN *w, const IN *bias, OUT *y, const bool *redo) {
  const int last = NDIM - 1;
  i64 per_group = g.k / g.groups, tiles = (per_group + KT - 1) / KT, image, tile;
  int q[NDIM], t[NDIM];
  if (!locate(g, g.groups * tiles, &image, &tile, q)) return;
  if (redo && !redo[image]) return;
  i64 group = tile / tiles, k0 = (tile % tiles) * KT, inputs = g.c / g.groups;
  int channels = (int)min((i64)KT, per_group - k0), outputs = min(PT, (int)(g.first[last] + g.count[last]) - q[last]);
  k0 += group * per_group;
  ACC sums[KT][PT];
#pragma unroll
  for (int k = 0; k < KT; ++k)
#pragma unroll
    for (int j = 0; j < PT; ++j) sums[k][j] = ZERO(ACC);

  for (i64 c = 0; c < inputs; ++c) {
    clear(t);
    do {
      i64 row = image * g.a[0] + (group * inputs + c) * g.a[1], weights = k0 * g.b[0] + c * g.b[1];
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < last; ++axis) {
        int i = read_by(g, axis, q[axis], g.flip ? (int)g.window[axis] - 1 - t[axis] : t[axis]);
        inside = inside && i >= 0;
        row += i * g.a[2 + axis];
        weights += t[axis] * g.b[2 + axis];
      }
      if (inside) {
        ACC values[PT];
        bool there[PT];
#if SLIDE
#pragma unroll
        for (int j = 0; j + 1 < PT; ++j) values[j + 1] = value_at(g, x + row, q[last] + j, 0, &there[j + 1]);
#endif
        for (int r = 0; r < (int)g.window[last]; ++r) {
#if SLIDE
#pragma unroll
          for (int j = 0; j + 1 < PT; ++j) values[j] = values[j + 1], there[j] = there[j + 1];
          values[PT - 1] = value_at(g, x + row, q[last] + PT - 1, r, &there[PT - 1]);
#else
#pragma unroll
          for (int j = 0; j < PT; ++j)
            values[j] = value_at(g, x + row, q[last] + j, g.flip ? (int)g.window[last] - 1 - r : r, &there[j]);
#endif
#pragma unroll
          for (int k = 0; k < KT; ++k) {
            // A channel beyond the last is computed as the last, and not stored.
            ACC weight = wide(w[weights + r * g.b[NDIM + 1] + min(k, channels - 1) * g.b[0]]);
#pragma unroll
            for (int j = 0; j < PT; ++j)
              if (there[j]) sums[k][j] = madd(values[j], weight, sums[k][j]);
          }
        }
      }
      t[last] = (int)g.window[last] - 1;  // the row of taps is done
    } while (advance(g.window, t));
  }

#pragma unroll
  for (int k = 0; k < KT; ++k)
#pragma unroll
    for (int j = 0; j < PT; ++j)
      if (k < channels && j < outputs) {
        i64 offset = at(g.y, image, k0 + k, q) + j * g.y[NDIM + 1];
        finish(g, sums[k][j], bias, (int)k0 + k, y + offset);
      }
}

#endif

#ifdef CONV_INPUT_GRAD

// grad_x from grad_y and w. a: grad_y, b: w, y: grad_x. A tile is KT channels of x; PT is 1.
extern "C" __global__ void conv_input_grad(Geometry g, const IN *grad_y, const IN *w, const IN *bias, OUT *grad_x,
                                           const bool *redo) {
  i64 per_group = g.c / g.groups, tiles = (per_group + KT - 1) / KT, image, tile;
  int i[NDIM], q[NDIM], t[NDIM], tap[NDIM];
  if (!locate(g, g.groups * tiles, &image, &tile, i)) return;
  if (redo && !redo[image]) return;
  i64 group = tile / tiles, c0 = (tile % tiles) * KT, outputs = g.k / g.groups;
  int channels = (int)min((i64)KT, per_group - c0);
  ACC sums[KT];
#pragma unroll
  for (int c = 0; c < KT; ++c) sums[c] = ZERO(ACC);

  for (i64 k = group * outputs; k < (group + 1) * outputs; ++k) {
    clear(t);
    do {
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) tap[axis] = g.flip ? (int)g.window[axis] - 1 - t[axis] : t[axis];
      for (bool some = first_output(g, i, tap, q); some; some = following_output(g, i, tap, q)) {
        ACC gradient = wide(grad_y[at(g.a, image, k, q)]);
#pragma unroll
        for (int c = 0; c < KT; ++c) {
          ACC weight = conjugate(wide(w[at(g.b, k, c0 + min(c, channels - 1), t)]));
          sums[c] = madd(gradient, weight, sums[c]);
        }
      }
    } while (advance(g.window, t));
  }

#pragma unroll
  for (int c = 0; c < KT; ++c)
    if (c < channels) {
      i64 channel = group * per_group + c0 + c;
      finish(g, sums[c], bias, (int)channel, grad_x + at(g.y, image, channel, i));
    }
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
  for (i64 part = 1; part < g.parts; ++part) sum = plus(sum, sums[part * all + item]);
  i64 rest = unravel(item, g.count, position);
  out[at(g.y, rest / d1, rest % d1, position)] = narrow(sum);
}

#endif
