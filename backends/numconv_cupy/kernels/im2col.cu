// What surrounds the products of cuBLAS: columns gathered from x (im2col) and their gradients added up (col2im), the end of a
// product (bias, activation, what meets a padding zero and is not finite), and partial sums of gradients of weights.
//
// A matrix of columns has a row for each channel and tap, and a column for each output of a block; a block is some images, or some
// rows (positions on the first axis) of one. Macros beside those of common.cuh: STORED (whether products have the type of results,
// else that of sums), COPIES (whether padding copies values of x), LAST (taps of the last axis that are unrolled; 0: none) and
// STRIDED.

#if STORED
typedef OUT FROM;
#else
typedef ACC FROM;
#endif

struct Block {
  i64 image_step, row_step;  // of the columns or the products, in elements
  i64 threads;
  i64 first;                 // the block's first position on the first axis: of y, or of x for col2im
  i64 pixels;                // outputs of a block in an image
  i64 begin;                 // the first row of outputs that the columns of a col2im hold, and how many
  i64 held;
  i64 aligned, share, parts, start, last;
  Divisor by_pixels, by_splits, by_channels, by_taps;
  Divisor by_window[NDIM], by_axis[NDIM], by_stride[NDIM];
};
static_assert(sizeof(Block) == BLOCK_BYTES, "the host packs another block");

enum { WIDE = 16 / sizeof(IN) };  // elements of a store

__device__ __forceinline__ void mirror(const Geometry &g, int *tap) {
  if (!g.flip) return;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) tap[axis] = (int)g.window[axis] - 1 - tap[axis];
}

// Whether some tap of an output reads padding.
__device__ __forceinline__ bool reads_padding(const Geometry &g, const int *o) {
  bool outside = false;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    int from = o[axis] * (int)g.stride[axis] - (int)g.low[axis];
    outside = outside || from < 0 || from + ((int)g.window[axis] - 1) * (int)g.dilation[axis] >= (int)g.spatial[axis];
  }
  return outside;
}

// An output of the convolution, term by term: a is x, b is w.
__device__ ACC output_of(const Geometry &g, const IN *x, const IN *w, int image, int channel, const int *o) {
  int inputs = (int)(g.c / g.groups), group = channel / (int)(g.k / g.groups);
  ACC sum = ZERO(ACC);
  for (int c = 0; c < inputs; ++c) {
    int tap[NDIM];
    clear(tap);
    do {
      int at_tap[NDIM], i[NDIM];
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) at_tap[axis] = tap[axis];
      mirror(g, at_tap);
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) {
        i[axis] = read_by(g, axis, o[axis], at_tap[axis]);
        inside = inside && i[axis] >= 0;
      }
      if (inside) sum = madd(wide(x[at(g.a, image, group * inputs + c, i)]), wide(w[at(g.b, channel, c, tap)]), sum);
    } while (advance(g.window, tap));
  }
  return sum;
}

#if defined(GATHER_COLUMNS)

// The position of x that is read at position i of an axis, which may lie in the padding; negative: a padding zero.
__device__ __forceinline__ int read_at(const Geometry &g, int axis, int i) {
#if COPIES
  return source(g, axis, i);
#else
  return i < (int)g.spatial[axis] ? i : -1;
#endif
}

// a: x. A thread has WIDE neighbouring outputs of one channel, and all taps or those of some positions on the axes but the last
// (`share` of them): what it knows of its outputs serves for all. Outputs beyond the block are zeros.
extern "C" __global__ void gather_columns(const Geometry g, const Block b, const IN *x, IN *columns) {
  i64 thread = thread_index();
  if (thread >= b.threads) return;
  unsigned pixel = (unsigned)thread, begin = divide(pixel, b.by_pixels), channel = divide(begin, b.by_splits);
  unsigned image = divide(channel, b.by_channels);
  const int last = LAST ? LAST : (int)g.window[NDIM - 1];
  begin *= (unsigned)b.share;
  unsigned end = min(begin + (unsigned)b.share, b.by_taps.by / (unsigned)last);
  pixel *= WIDE;
  int o[NDIM], starts[WIDE][NDIM], tap[NDIM];
  split(pixel, b.by_axis, o);
  o[0] += (int)b.first;
#pragma unroll
  for (int v = 0; v < WIDE; ++v) {
    bool carry = true;
#pragma unroll
    for (int axis = NDIM - 1; axis >= 0; --axis) {
      starts[v][axis] = o[axis] * (int)g.stride[axis] - (int)g.low[axis];
      o[axis] += carry;
      carry = carry && axis > 0 && o[axis] == (int)g.output[axis];
      if (carry) o[axis] = 0;
    }
  }
  unsigned lead = begin;
#pragma unroll
  for (int axis = NDIM - 2; axis > 0; --axis) {
    unsigned rest = lead;
    lead = divide(rest, b.by_window[axis]);
    tap[axis] = (int)rest;
  }
  tap[0] = (int)lead;
  const IN *from = x + image * g.a[0] + channel * g.a[1];
  IN *to = columns + image * b.image_step + ((i64)channel * b.by_taps.by + (i64)begin * last) * b.row_step + pixel;
  for (lead = begin; lead < end; ++lead) {
    const IN *row[WIDE];
#pragma unroll
    for (int v = 0; v < WIDE; ++v) {
      row[v] = pixel + v < (unsigned)b.pixels ? from : (const IN *)0;
#pragma unroll
      for (int axis = 0; axis < NDIM - 1; ++axis) {
        int t = g.flip ? (int)g.window[axis] - 1 - tap[axis] : tap[axis];
        int i = read_at(g, axis, starts[v][axis] + t * (int)g.dilation[axis]);
        row[v] = row[v] && i >= 0 ? row[v] + i * g.a[2 + axis] : (const IN *)0;
      }
    }
#pragma unroll
    for (int t = 0; t < last; ++t) {
      int shift = (g.flip ? last - 1 - t : t) * (int)g.dilation[NDIM - 1];
      union { IN one[WIDE]; int4 all; } values;
#pragma unroll
      for (int v = 0; v < WIDE; ++v) {
        int i = read_at(g, NDIM - 1, starts[v][NDIM - 1] + shift);
        values.one[v] = row[v] && i >= 0 ? row[v][i * g.a[NDIM + 1]] : ZERO(IN);
      }
      if (b.aligned) {
        *(int4 *)to = values.all;
      } else {
#pragma unroll
        for (int v = 0; v < WIDE; ++v)
          if (pixel + v < (unsigned)b.pixels) to[v] = values.one[v];
      }
      to += b.row_step;
    }
#pragma unroll
    for (int axis = NDIM - 2; axis >= 0; --axis) {
      if (++tap[axis] < (int)g.window[axis]) break;
      tap[axis] = 0;
    }
  }
}

#elif defined(ADD_COLUMNS)

// The output of which tap t reads position p of an axis, where p counts from the first padded one; negative: none.
__device__ __forceinline__ int output_at(const Geometry &g, const Block &b, int axis, int p, int tap) {
  int t = g.flip ? (int)g.window[axis] - 1 - tap : tap;
  int shifted = p - t * (int)g.dilation[axis];
#if STRIDED
  int o = (int)quotient((unsigned)max(shifted, 0), b.by_stride[axis]);
  return shifted == o * (int)g.stride[axis] && o < (int)g.output[axis] ? o : -1;
#else
  return shifted < (int)g.output[axis] ? shifted : -1;
#endif
}

// y: the gradient of x. A thread adds what the taps of one position hold; then the bias and the activation of a transposed
// convolution.
extern "C" __global__ void add_columns(const Geometry g, const Block b, const FROM *columns, const IN *bias, OUT *out) {
  i64 thread = thread_index();
  if (thread >= b.threads) return;
  unsigned pixel = (unsigned)thread, channel = divide(pixel, b.by_pixels);
  unsigned image = divide(channel, b.by_channels);
  int i[NDIM], tap[NDIM];
  split(pixel, b.by_axis, i);
  i[0] += (int)b.first;
  const FROM *from = columns + image * b.image_step + (i64)channel * b.by_taps.by * b.row_step;
  const int last = LAST ? LAST : (int)g.window[NDIM - 1], position = i[NDIM - 1] + (int)g.low[NDIM - 1];
  ACC sum = ZERO(ACC);
  clear(tap);
  for (unsigned leads = b.by_taps.by / (unsigned)last; leads > 0; --leads) {
    bool reached = true;
    int lead = 0;
#pragma unroll
    for (int axis = 0; axis < NDIM - 1; ++axis) {
      int o = output_at(g, b, axis, i[axis] + (int)g.low[axis], tap[axis]);
      if (axis == 0) o = o < (int)(b.begin + b.held) ? o - (int)b.begin : -1;
      reached = reached && o >= 0;
      lead = lead * (int)g.output[axis] + o;
    }
    lead *= (int)g.output[NDIM - 1];
    if (reached) {
#pragma unroll
      for (int t = 0; t < last; ++t) {
        int o = output_at(g, b, NDIM - 1, position, t);
        if (NDIM == 1) o = o < (int)(b.begin + b.held) ? o - (int)b.begin : -1;
        if (o >= 0) sum = plus(sum, Convert<ACC, FROM>::of(from[t * b.row_step + lead + o]));
      }
    }
    from += last * b.row_step;
#pragma unroll
    for (int axis = NDIM - 2; axis >= 0; --axis) {
      if (++tap[axis] < (int)g.window[axis]) break;
      tap[axis] = 0;
    }
  }
  finish(g, sum, bias, (int)channel, out + at(g.y, image, channel, i));
}

#elif defined(FINISH_PRODUCTS)

// a: x, b: w, y: y. The products go where y has them, with bias and activation; what met a padding zero and is not finite is
// computed again.
extern "C" __global__ void finish_products(
    const Geometry g, const Block b, const IN *x, const IN *w, const IN *bias, const FROM *products, OUT *y) {
  i64 thread = thread_index();
  if (thread >= b.threads) return;
  unsigned pixel = (unsigned)thread, channel = divide(pixel, b.by_pixels), at_pixel = pixel;
  unsigned image = divide(channel, b.by_channels);
  int o[NDIM];
  split(at_pixel, b.by_axis, o);
  o[0] += (int)b.first;
  ACC sum = Convert<ACC, FROM>::of(products[image * b.image_step + channel * b.row_step + pixel]);
  if (g.pad_mode == ZEROS && !is_finite(sum) && reads_padding(g, o)) sum = output_of(g, x, w, (int)image, (int)channel, o);
  finish(g, sum, bias, (int)channel, y + at(g.y, image, channel, o));
}

#elif defined(REPAIR_BORDER)

// The outputs that read padding, as pieces: piece a has what lies outside the inner positions of axis a, and inside those of the
// axes before it.
struct Border {
  i64 threads, first;
  i64 from[NDIM], inner[NDIM], ends[NDIM];  // the first inner position, how many, and where the numbers of a piece end
  Divisor by_positions, by_channels, by_piece[NDIM * NDIM];
};
static_assert(sizeof(Border) == BORDER_BYTES, "the host packs another record");

// a: x, b: w, y: y, which holds the products. Those that are not finite are computed again.
extern "C" __global__ void repair_border(const Geometry g, const Border b, const IN *x, const IN *w, OUT *y) {
  i64 thread = thread_index();
  if (thread >= b.threads) return;
  unsigned position = (unsigned)thread, channel = divide(position, b.by_positions), image = divide(channel, b.by_channels);
  int piece = 0, o[NDIM];
  while (position >= (unsigned)b.ends[piece]) ++piece;
  if (piece) position -= (unsigned)b.ends[piece - 1];
  split(position, b.by_piece + piece * NDIM, o);
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    if (axis < piece) o[axis] += (int)b.from[axis];
    if (axis == piece && o[axis] >= (int)b.from[axis]) o[axis] += (int)b.inner[axis];
  }
  o[0] += (int)b.first;
  OUT *to = y + at(g.y, image, channel, o);
  if (!is_finite(Convert<ACC, OUT>::of(*to))) *to = narrow(output_of(g, x, w, (int)image, (int)channel, o));
}

#elif defined(SUM_GRADIENTS)

// a: grad_y, b: x, y: the gradient of w. A thread adds the parts of one element to the sums of earlier blocks; after the last block
// it is stored, computed again in double precision where it is not finite and may have met a padding zero.
extern "C" __global__ void sum_gradients(
    const Geometry g, const Block b, const IN *grad_y, const IN *x, const FROM *parts, ACC *sums, OUT *out) {
  i64 thread = thread_index();
  if (thread >= b.threads) return;
  ACC sum = b.start ? ZERO(ACC) : sums[thread];
  for (int part = 0; part < (int)b.parts; ++part) sum = plus(sum, Convert<ACC, FROM>::of(parts[part * b.image_step + thread]));
  if (!b.last) {
    sums[thread] = sum;
    return;
  }
  unsigned tap_index = (unsigned)thread, row = divide(tap_index, b.by_taps);
  int k = (int)divide(row, b.by_channels), c = (int)row, tap[NDIM];
  split(tap_index, b.by_window, tap);
  int at_tap[NDIM];
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) at_tap[axis] = tap[axis];
  mirror(g, at_tap);
  if (g.pad_mode == ZEROS && !is_finite(sum)) {
    int inputs = (int)(g.c / g.groups);
    sum = (ACC)gradient_of(g, grad_y, x, k, k / (int)(g.k / g.groups) * inputs + c, at_tap);
  }
  out[at(g.y, k, c, tap)] = narrow(sum);
}

#endif
