// Convolution and its gradient for x where few channels belong together: every channel's plane goes to shared memory on its own, with
// the zeros of its padding, and is correlated there, in the order of accuracy="strict".
//
// A block has `planes` pairs of image and group, of which its threads compute ty * RT rows by lx * 4 columns of the last two axes for
// KT channels; positions and taps of the axes before them are those of the whole block. With SLIDE (a step of one on the last axis,
// as of results so of taps) the four results of a thread are neighbours, which share what they read; without it they lie lx apart.
//
// A result that is not finite may be one because a padding zero met a weight that is not: it is computed anew, term by term.

enum { PT = 4, OUTER = NDIM > 2 ? NDIM - 2 : 0, LAST = NDIM - 1, PER_THREAD = KT * RT * PT };
static_assert(PER_THREAD <= 64, "the results of a thread are counted in 64 bits");

struct Block {
  Axis rows, columns, axes[NDIM];
  int outer[NDIM];  // results on the axes before the last two
  int inputs, outputs;  // channels a group
  int pair0, channel0, row0, column0;
  int row_low, column_low, height, width, pitch, weights;  // of a plane in shared memory, the first position of each axis; of weights
};

// --- where a block is

__device__ __forceinline__ int distance(int a) { return a < 0 ? -a : a; }
__device__ __forceinline__ int fours(int a) { return (a + 3) / 4 * 4; }
__device__ __forceinline__ void locate(const Geometry &g, int lx, int ty, int planes, Block &block) {
  const int across = lx * PT, down = ty * RT;
  int index = (int)blockIdx.x;
  block.inputs = divided(GRADIENT ? g.k : g.c, g.groups);
  block.outputs = divided(GRADIENT ? g.c : g.k, g.groups);
  block.column0 = take(index, (results_of(g, LAST, GRADIENT) + across - 1) / across) * across;
  block.row0 = NDIM > 1 ? take(index, (results_of(g, NDIM > 1 ? LAST - 1 : 0, GRADIENT) + down - 1) / down) * down : 0;
  for (int axis = OUTER - 1; axis >= 0; --axis) block.outer[axis] = take(index, results_of(g, axis, GRADIENT));
  block.channel0 = take(index, (block.outputs + KT - 1) / KT) * KT;
  for (int axis = LAST; axis >= 0; --axis)
    block.axes[axis] = axis_of(g, axis, GRADIENT, GRADIENT ? take(index, (int)g.stride[axis]) : 0);
  block.pair0 = index * planes;
  block.columns = block.axes[LAST];
  block.rows = NDIM > 1 ? block.axes[NDIM > 1 ? LAST - 1 : 0] : Axis{1, 0, 1, 0, 0, 1, 1, 1, 0, 1};
  const Axis &r = block.rows, &c = block.columns;
  // With SLIDE the lowest position that a thread reads is a multiple of four, whichever way the taps run.
  int shift = SLIDE && c.apart < 0 ? fours(c.taps) - c.taps : 0;
  block.row_low = block.row0 * r.scale + min(r.at, r.at + (r.taps - 1) * r.apart);
  block.column_low = block.column0 * c.scale + min(c.at, c.at + (c.taps - 1) * c.apart) - shift;
  block.height = (down - 1) * r.scale + (r.taps - 1) * distance(r.apart) + 1;
  block.width = (across - 1) * c.scale + (c.taps - 1) * distance(c.apart) + 1 + shift;
  block.pitch = SLIDE ? across + fours(c.taps) : fours(block.width);
  block.weights = r.taps * fours(c.taps);
}

// The offset of taps in w.
__device__ __forceinline__ i64 tap_at(const Geometry &g, const Axis &a, int axis, int m) { return (a.tap + m * a.tap_step) * g.b[2 + axis]; }

__device__ __forceinline__ i64 weight_at(const Geometry &g, const Block &block, int group, int input, int output) {
  return GRADIENT ? (group * (i64)block.inputs + input) * g.b[0] + output * g.b[1]
                  : (group * (i64)block.outputs + output) * g.b[0] + input * g.b[1];
}

__device__ __forceinline__ ACC multiplied(ACC value, ACC weight, ACC sum) {
  return madd(value, GRADIENT ? conjugate(weight) : weight, sum);
}

// --- from global to shared memory

// The position that is read for one that may lie in the padding; -1 for a padding zero.
__device__ __forceinline__ int read_at(const Geometry &g, int axis, int size, int position) {
  if (COPYING) return source(g, axis, position);
  return (unsigned)position < (unsigned)size ? position : -1;
}

// A plane of one channel for each pair; zeros on padding. `outer` is the offset of its position on the axes before the last two.
__device__ __forceinline__ void fetch_values(const Geometry &g, const Block &block, const IN *x, int input, i64 outer, int planes, ACC *values) {
  int lanes = 32;
  while (lanes / 2 >= block.width) lanes /= 2;
  const int thread = (int)threadIdx.x, lane = thread % lanes, lines = (int)blockDim.x / lanes, pairs = (int)(g.n * g.groups);
  const i64 step = g.a[2 + LAST];
  for (int plane = 0; plane < planes; ++plane) {
    int pair = block.pair0 + plane, image = pair / (int)g.groups, group = pair - image * (int)g.groups;
    const IN *from_plane = x + outer + image * g.a[0] + (group * (i64)block.inputs + input) * g.a[1];
    for (int row = thread / lanes; row < block.height; row += lines) {
      int at_row = NDIM > 1 ? read_at(g, NDIM > 1 ? LAST - 1 : 0, block.rows.size, block.row_low + row) : 0;
      bool some = pair < pairs && at_row >= 0;
      const IN *from = from_plane + (NDIM > 1 ? at_row * g.a[1 + LAST] : 0);
      ACC *to = values + (plane * block.height + row) * block.pitch;
      for (int column = lane; column < block.width; column += lanes) {
        int at_column = read_at(g, LAST, block.columns.size, block.column_low + column);
        bool there = some && at_column >= 0;
        if (COPIED)
          copy(to + column, (const char *)(from + at_column * step), there);
        else
          to[column] = there ? wide(from[at_column * step]) : ZERO(ACC);
      }
    }
  }
}

// The taps [planes, KT, rows, fours of columns] of one channel.
__device__ __forceinline__ void fetch_weights(const Geometry &g, const Block &block, const IN *w, int input, i64 outer, int planes, ACC *weights) {
  const int pitch = fours(block.columns.taps), all = planes * KT * block.weights;
  for (int item = (int)threadIdx.x; item < all; item += (int)blockDim.x) {
    int index = item, column = take(index, pitch), row = take(index, block.rows.taps), k = take(index, KT);
    int group = (block.pair0 + index) % (int)g.groups, output = min(block.channel0 + k, block.outputs - 1);
    i64 offset = weight_at(g, block, group, input, output) + outer + tap_at(g, block.columns, LAST, min(column, block.columns.taps - 1));
    if (NDIM > 1) offset += tap_at(g, block.rows, LAST - 1, row);
    if (COPIED)
      copy(weights + item, (const char *)(w + offset), true);
    else
      weights[item] = wide(w[offset]);
  }
}

// --- sums of a thread

typedef ACC Sums[KT][RT][PT];

// Adds the taps of one row: `row` are its values where the thread's first result is, `down` from one of its rows to the next.
__device__ __forceinline__ void add_row(const Axis &c, const ACC *row, int down, const ACC *weights, int next_channel, int lx, Sums &sums) {
  const int taps = TAPS ? TAPS : c.taps;
#if SLIDE
  const bool ascending = REVERSED == 0;
  ACC window[RT][8];
  int base = ascending ? 0 : fours(taps) - 4;
#pragma unroll
  for (int r = 0; r < RT; ++r) {
    Four<ACC> four = *(const Four<ACC> *)(row + r * down + (ascending ? base : base + 4));
#pragma unroll
    for (int i = 0; i < 4; ++i) window[r][ascending ? i : 4 + i] = four.of[i];
  }
#pragma unroll
  for (int m = 0; m < taps; m += 4) {
    Four<ACC> four[KT];
#pragma unroll
    for (int k = 0; k < KT; ++k) four[k] = *(const Four<ACC> *)(weights + k * next_channel + m);
#pragma unroll
    for (int r = 0; r < RT; ++r) {
      Four<ACC> values = *(const Four<ACC> *)(row + r * down + (ascending ? base + 4 : base));
#pragma unroll
      for (int i = 0; i < 4; ++i) window[r][ascending ? 4 + i : i] = values.of[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (m + i < taps)
#pragma unroll
        for (int k = 0; k < KT; ++k)
#pragma unroll
          for (int r = 0; r < RT; ++r)
#pragma unroll
            for (int p = 0; p < PT; ++p)
              sums[k][r][p] = multiplied(window[r][ascending ? p + i : p + 3 - i], four[k].of[i], sums[k][r][p]);
#pragma unroll
    for (int r = 0; r < RT; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) window[r][ascending ? i : 4 + i] = window[r][ascending ? 4 + i : i];
    base += ascending ? 4 : -4;
  }
#else
  int lowest = min(0, (taps - 1) * c.apart);
#pragma unroll
  for (int m = 0; m < taps; ++m)
#pragma unroll
    for (int r = 0; r < RT; ++r)
#pragma unroll
      for (int p = 0; p < PT; ++p) {
        ACC value = row[r * down + p * lx * c.scale + m * c.apart - lowest];
#pragma unroll
        for (int k = 0; k < KT; ++k) sums[k][r][p] = multiplied(value, weights[k * next_channel + m], sums[k][r][p]);
      }
#endif
}

// The sum of one result, without the terms on padding.
__device__ __forceinline__ ACC chain(const Geometry &g, const Block &block, const IN *x, const IN *w, int pair, int output, const int *j) {
  int image = pair / (int)g.groups, group = pair % (int)g.groups, taps = 1;
  for (int axis = 0; axis < NDIM; ++axis) taps *= block.axes[axis].taps;
  ACC sum = ZERO(ACC);
  for (int input = 0; input < block.inputs; ++input)
    for (int index = 0; index < taps; ++index) {
      i64 value = image * g.a[0] + (group * (i64)block.inputs + input) * g.a[1], weight = weight_at(g, block, group, input, output);
      bool inside = true;
      int rest = index;
      for (int axis = LAST; axis >= 0; --axis) {
        const Axis &a = block.axes[axis];
        int m = take(rest, a.taps), position = j[axis] * a.scale + a.at + m * a.apart;
        position = read_at(g, axis, a.size, position);
        inside = inside && position >= 0;
        value += position * g.a[2 + axis];
        weight += tap_at(g, a, axis, m);
      }
      if (inside) sum = multiplied(wide(x[value]), wide(w[weight]), sum);
    }
  return sum;
}

// Writes what a thread has, which is number `across`, `down` and `plane` on the three sides of its block, and computes anew what is not
// finite.
__device__ __forceinline__ void write(const Geometry &g, const Block &block, const IN *x, const IN *w, const IN *bias, OUT *y, int lx,
                                      int across, int down, int plane, const Sums &sums) {
  const Axis &r = block.rows, &c = block.columns;
  const int pair = block.pair0 + plane, image = pair / (int)g.groups, group = pair % (int)g.groups;
  if (pair >= g.n * g.groups) return;
  int j[NDIM];
  i64 outer = image * g.y[0];
  for (int axis = 0; axis < OUTER; ++axis) {
    const Axis &a = block.axes[axis];
    j[axis] = block.outer[axis];
    if (j[axis] >= a.count) return;
    outer += (a.place + j[axis] * a.place_step) * g.y[2 + axis];
  }
  const int outputs = block.outputs, column0 = block.column0 + across * (SLIDE ? PT : 1), apart = SLIDE ? 1 : lx;
  const i64 step = c.place_step * g.y[2 + LAST];
  unsigned long long odd = 0;  // which results are not finite
#pragma unroll
  for (int k = 0; k < KT; ++k)
#pragma unroll
    for (int i = 0; i < RT; ++i) {
      int row = block.row0 + down * RT + i, output = block.channel0 + k;
      if (output >= outputs || row >= r.count) continue;
      i64 channel = group * (i64)outputs + output;
      OUT *to = y + outer + channel * g.y[1] + (c.place + column0 * c.place_step) * g.y[2 + LAST];
      if (NDIM > 1) to += (r.place + row * r.place_step) * g.y[1 + LAST];
#pragma unroll
      for (int p = 0; p < PT; ++p)
        if (column0 + p * apart < c.count) odd |= (unsigned long long)strange(sums[k][i][p]) << ((k * RT + i) * PT + p);
      if (SLIDE && step == 1 && column0 + PT <= c.count && lined_up<OUT, PT>(to)) {
        Four<OUT> four;
#pragma unroll
        for (int p = 0; p < PT; ++p) four.of[p] = finished(g, sums[k][i][p], bias, (int)channel);
        *(Four<OUT> *)to = four;
      } else {
#pragma unroll
        for (int p = 0; p < PT; ++p)
          if (column0 + p * apart < c.count) finish(g, sums[k][i][p], bias, (int)channel, to + p * apart * step);
      }
    }
#pragma unroll 1
  for (int result = 0; odd; ++result, odd >>= 1) {
    if (!(odd & 1)) continue;
    int rest = result, p = take(rest, PT), i = take(rest, RT), output = block.channel0 + rest;
    j[LAST] = column0 + p * apart;
    if (NDIM > 1) j[NDIM > 1 ? LAST - 1 : 0] = block.row0 + down * RT + i;
    i64 channel = group * (i64)outputs + output, where = outer + channel * g.y[1] + (c.place + j[LAST] * c.place_step) * g.y[2 + LAST];
    if (NDIM > 1) where += (r.place + (block.row0 + down * RT + i) * r.place_step) * g.y[1 + LAST];
    finish(g, chain(g, block, x, w, pair, output, j), bias, (int)channel, y + where);
  }
}

// a: x, or grad_y; b: w; y: the result.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv_planes(Geometry g, i64 lanes, i64 lines, i64 pairs, const IN *x, const IN *w, const IN *bias, OUT *y) {
  DYNAMIC_MEMORY(Four<ACC>, memory);
  __shared__ Block block;
  const int lx = (int)lanes, ty = (int)lines, planes = (int)pairs, thread = (int)threadIdx.x;
  if (thread == 0) locate(g, lx, ty, planes, block);
  __syncthreads();
  const int buffer = planes * (block.height * block.pitch + KT * block.weights);
  ACC *values = (ACC *)memory, *weights = values + planes * block.height * block.pitch;
  const Axis &r = block.rows, &c = block.columns;
  int place = thread;
  const int px = take(place, lx), py = take(place, ty), pz = place;
  const int row_low = min(0, (r.taps - 1) * r.apart), down = r.scale * block.pitch;
  const ACC *own_weights = weights + pz * KT * block.weights;
  const ACC *own = values + (pz * block.height + py * RT * r.scale) * block.pitch + px * (SLIDE ? PT : c.scale);

  Sums sums;
#pragma unroll
  for (int k = 0; k < KT; ++k)
#pragma unroll
    for (int i = 0; i < RT; ++i)
#pragma unroll
      for (int p = 0; p < PT; ++p) sums[k][i][p] = ZERO(ACC);

  // A step is a channel and taps on the axes before the last two: what it reads is fetched during the one before.
  int outer_taps = 1;
  for (int axis = 0; axis < OUTER; ++axis) outer_taps *= block.axes[axis].taps;
  const int steps = r.taps && c.taps ? block.inputs * outer_taps : 0;
  auto fetch = [&](int step) {
    int input = step;
    i64 outer_value = 0, outer_weight = 0;
    for (int axis = OUTER - 1; axis >= 0; --axis) {
      const Axis &a = block.axes[axis];
      int m = take(input, a.taps), position = read_at(g, axis, a.size, block.outer[axis] * a.scale + a.at + m * a.apart);
      if (position < 0) return false;
      outer_value += position * g.a[2 + axis];
      outer_weight += tap_at(g, a, axis, m);
    }
    fetch_values(g, block, x, input, outer_value, planes, values + step % 2 * buffer);
    fetch_weights(g, block, w, input, outer_weight, planes, weights + step % 2 * buffer);
    return true;
  };
  bool some = steps && fetch(0);
  close_group();
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_for_all_but<0>();
    __syncthreads();
    const bool now = some;
    some = step + 1 < steps && fetch(step + 1);
    close_group();
    if (now && pz < planes)
#pragma unroll 1
      for (int m = 0; m < r.taps; ++m) {
        const ACC *row = own + step % 2 * buffer + (m * r.apart - row_low) * block.pitch;
        add_row(c, row, down, own_weights + step % 2 * buffer + m * fours(c.taps), block.weights, lx, sums);
      }
  }
  if (pz < planes) write(g, block, x, w, bias, y, lx, px, py, pz, sums);
}
