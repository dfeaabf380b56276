// What surrounds the transforms of cuFFT: blocks of the source and weights put in place for one batch of transforms, products of
// spectra, and results cut out of blocks.
//
// A unit is a block of one image; a block gives `step` positions of each axis and its transform has `length`, of which those beyond
// step + extent - 1 may hold anything. Macros beside those of common.cuh: GRADIENT (of x: the source is grad_y with zeros between),
// ROWS and COLUMNS (the tile of a thread's products). ACC is the type of the values.

typedef Complex<ACC> Spectral;

struct Spectra {
  i64 threads, unit, first, weights, sources;  // the first unit; channels of the weights in use, and of the source of a unit
  i64 group, output, groups, outputs, inputs;  // the first group and output; counts
  i64 rows, columns, inner, most;              // of products; and inner terms of a part
  i64 a[4], b[4], c[4];                        // steps of products: part, group, row or column, inner; of c part, group, row, column
  i64 frequencies, size, parts, start, last;
  double scale;
  i64 step[NDIM], extent[NDIM], before[NDIM], from[NDIM], to[NDIM];
  Divisor by_size, by_channels, by_inputs, by_outputs, by_blocks, by_frequencies, by_rows, by_columns, by_groups, by_taps;
  Divisor by_length[NDIM], by_block[NDIM], by_dilation[NDIM], by_stride[NDIM], by_kept[NDIM], by_window[NDIM];
};
static_assert(sizeof(Spectra) == SPECTRA_BYTES, "the host packs another record");

#if defined(FILL_WEIGHTS_AND_SOURCES) || defined(FILL_GRADIENT_AND_SOURCES)

// Position p of the padded x, counted from the first one that output 0 reads.
__device__ __forceinline__ ACC padded(const Geometry &g, const i64 *steps, const IN *x, int image, int channel, const int *p) {
  int i[NDIM];
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    i[axis] = source(g, axis, p[axis] - (int)g.low[axis]);
    inside = inside && i[axis] >= 0;
  }
  return inside ? wide(x[at(steps, image, channel, i)]) : ZERO(ACC);
}

// Position p of grad_y with zeros between its values.
__device__ __forceinline__ ACC spread(
    const Geometry &g, const Spectra &s, const i64 *steps, const IN *y, int image, int channel, const int *p) {
  int o[NDIM];
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    o[axis] = p[axis] < 0 ? 0 : (int)quotient((unsigned)p[axis], s.by_stride[axis]);
    inside = inside && p[axis] == o[axis] * (int)g.stride[axis] && o[axis] < (int)g.output[axis];
  }
  return inside ? wide(y[at(steps, image, channel, o)]) : ZERO(ACC);
}
#endif

#if defined(FILL_WEIGHTS_AND_SOURCES)

// a: the source, b: w. Batches of values: first the weights [groups, outputs, inputs], then the units [units, groups * inputs].
extern "C" __global__ void fill_weights_and_sources(const Geometry g, const Spectra s, const IN *source, const IN *w, ACC *values) {
  i64 thread = thread_index();
  if (thread >= s.threads) return;
  unsigned rest = (unsigned)thread, channel = divide(rest, s.by_size);
  int p[NDIM];
  split(rest, s.by_length, p);
  ACC value = ZERO(ACC);
  if (channel < (unsigned)s.weights) {
    unsigned input = channel, output = divide(input, s.by_inputs), group = divide(output, s.by_outputs);
    int tap[NDIM];
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) {
      int t = (int)quotient((unsigned)p[axis], s.by_dilation[axis]);
      inside = inside && t * (int)g.dilation[axis] == p[axis] && t < (int)g.window[axis];
      tap[axis] = (g.flip != 0) != (GRADIENT != 0) ? (int)g.window[axis] - 1 - t : t;
    }
    int per_group = (int)(g.k / g.groups), begin = (int)(s.group + group) * per_group;
    output += (unsigned)s.output;
    if (inside) value = wide(w[at(g.b, begin + (GRADIENT ? input : output), GRADIENT ? output : input, tap)]);
  } else {
    unsigned unit = channel - (unsigned)s.weights, block, image;
    channel = unit;
    unit = divide(channel, s.by_channels) + (unsigned)s.first;
    channel += (unsigned)(s.group * s.inputs);
    block = unit;
    image = divide(block, s.by_blocks);
    int number[NDIM];
    split(block, s.by_block, number);
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) p[axis] += number[axis] * (int)s.step[axis] - (int)s.before[axis];
#if GRADIENT
    value = spread(g, s, g.a, source, (int)image, (int)channel, p);
#else
    value = padded(g, g.a, source, (int)image, (int)channel, p);
#endif
  }
  values[thread] = value;
}

#elif defined(FILL_GRADIENT_AND_SOURCES)

// a: grad_y, b: x. Batches of values: first grad_y [units, groups * outputs], zero beyond a block, then x [units, groups * inputs].
extern "C" __global__ void fill_gradient_and_sources(const Geometry g, const Spectra s, const IN *grad_y, const IN *x, ACC *values) {
  i64 thread = thread_index();
  if (thread >= s.threads) return;
  unsigned rest = (unsigned)thread, channel = divide(rest, s.by_size), unit, block, image;
  int p[NDIM], number[NDIM];
  split(rest, s.by_length, p);
  bool left = channel < (unsigned)s.weights;
  if (!left) channel -= (unsigned)s.weights;
  unit = divide(channel, left ? s.by_outputs : s.by_inputs) + (unsigned)s.first;
  block = unit;
  image = divide(block, s.by_blocks);
  split(block, s.by_block, number);
  bool beyond = false;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    beyond = beyond || p[axis] >= (int)s.step[axis];
    p[axis] += number[axis] * (int)s.step[axis];
  }
  channel += (unsigned)(left ? s.group * s.outputs + s.output : s.group * s.inputs);
  ACC value = ZERO(ACC);
  if (!left)
    value = padded(g, g.b, x, (int)image, (int)channel, p);
  else if (!beyond)
    value = spread(g, s, g.a, grad_y, (int)image, (int)channel, p);
  values[thread] = value;
}

#elif defined(MULTIPLY_SPECTRA)

// c[part, group, row, column] = sum over inner terms of a[part, group, row] conj(b[part, group, column]) at each frequency. A thread
// has ROWS by COLUMNS of them at one frequency.
extern "C" __global__ void multiply_spectra(const Spectra s, const Spectral *a, const Spectral *b, Spectral *c) {
  i64 thread = thread_index();
  if (thread >= s.threads) return;
  unsigned frequency = (unsigned)thread, column = divide(frequency, s.by_frequencies), row = divide(column, s.by_columns);
  unsigned group = divide(row, s.by_rows), part = divide(group, s.by_groups);
  column *= COLUMNS;
  row *= ROWS;
  a += part * s.a[0] + group * s.a[1] + row * s.a[2] + frequency;
  b += part * s.b[0] + group * s.b[1] + column * s.b[2] + frequency;
  c += part * s.c[0] + group * s.c[1] + row * s.c[2] + column * s.c[3] + frequency;
  Spectral sums[ROWS][COLUMNS], rows[ROWS], columns[COLUMNS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) sums[i][j] = ZERO(Spectral);
  int inner = (int)min(s.most, s.inner - (i64)part * s.most);
  for (int term = 0; term < inner; ++term) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) rows[i] = row + i < (unsigned)s.rows ? a[i * s.a[2]] : ZERO(Spectral);
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) columns[j] = conjugate(column + j < (unsigned)s.columns ? b[j * s.b[2]] : ZERO(Spectral));
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) sums[i][j] = madd(rows[i], columns[j], sums[i][j]);
    a += s.a[3];
    b += s.b[3];
  }
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j)
      if (row + i < (unsigned)s.rows && column + j < (unsigned)s.columns) c[i * s.c[2] + j * s.c[3]] = sums[i][j];
}

#elif defined(STORE_BLOCKS)

// A result term by term. a: the source, b: w.
__device__ ACC result_of(const Geometry &g, const Spectra &s, const IN *source, const IN *w, int image, int channel, const int *o) {
  int inputs = (int)((GRADIENT ? g.k : g.c) / g.groups), group = channel / (int)((GRADIENT ? g.c : g.k) / g.groups);
  int within = channel - group * (int)(g.c / g.groups);
  ACC sum = ZERO(ACC);
  for (int input = 0; input < inputs; ++input) {
    int tap[NDIM], i[NDIM];
    clear(tap);
    do {
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < NDIM; ++axis) {
        int t = g.flip ? (int)g.window[axis] - 1 - tap[axis] : tap[axis];
#if GRADIENT
        int p = o[axis] + (int)g.low[axis] - t * (int)g.dilation[axis];
        i[axis] = p < 0 ? 0 : (int)quotient((unsigned)p, s.by_stride[axis]);
        inside = inside && p == i[axis] * (int)g.stride[axis] && i[axis] < (int)g.output[axis];
#else
        i[axis] = read_by(g, axis, o[axis], t);
        inside = inside && i[axis] >= 0;
#endif
      }
      int from = group * inputs + input;
      i64 weight = GRADIENT ? at(g.b, from, within, tap) : at(g.b, channel, input, tap);
      if (inside) sum = madd(wide(source[at(g.a, image, from, i)]), wide(w[weight]), sum);
    } while (advance(g.window, tap));
  }
  return sum;
}

// y: the result. Values [units, groups * outputs, *lengths]; what is near a border, where sums are too short beside the error of a
// transform, and what is not finite is computed term by term.
extern "C" __global__ void store_blocks(
    const Geometry g, const Spectra s, const IN *source, const IN *w, const IN *bias, const ACC *values, OUT *out) {
  i64 thread = thread_index();
  if (thread >= s.threads) return;
  unsigned kept = (unsigned)thread, channel = divide(kept, s.by_size), unit = divide(channel, s.by_channels);
  i64 batch = (i64)unit * s.by_channels.by + channel;
  unsigned block = unit + (unsigned)s.first, image = divide(block, s.by_blocks);
  int o[NDIM], p[NDIM], number[NDIM];
  split(kept, s.by_kept, p);
  split(block, s.by_block, number);
  bool outside = false, shorter = false;
  i64 place = batch;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    o[axis] = number[axis] * (int)s.by_kept[axis].by + p[axis];
    outside = outside || o[axis] >= (int)(GRADIENT ? g.spatial[axis] : g.output[axis]);
    shorter = shorter || o[axis] < (int)s.from[axis] || o[axis] >= (int)s.to[axis];
    place = place * s.by_length[axis].by + p[axis] * (GRADIENT ? 1 : (int)g.stride[axis]);
  }
  if (outside) return;
  unsigned group = channel, output;
  output = group;
  group = divide(output, s.by_outputs);
  int results = (int)((GRADIENT ? g.c : g.k) / g.groups);
  int number_of = (int)(s.group + group) * results + (int)s.output + (int)output;
  ACC sum = values[place] * (ACC)s.scale;
  if (shorter || !is_finite(sum)) sum = result_of(g, s, source, w, (int)image, number_of, o);
  finish(g, sum, bias, number_of, out + at(g.y, image, number_of, o));
}

#elif defined(STORE_GRADIENT)

// a: grad_y, b: x, y: the gradient of w. Values [parts, groups, outputs, inputs, *lengths] are added to the sums of earlier units;
// after the last ones they are stored, computed term by term in double precision where they are not finite.
extern "C" __global__ void store_gradient(
    const Geometry g, const Spectra s, const IN *grad_y, const IN *x, const ACC *values, ACC *sums, OUT *out) {
  i64 thread = thread_index();
  if (thread >= s.threads) return;
  unsigned rest = (unsigned)thread, row = divide(rest, s.by_taps), input = row;
  int tap[NDIM], at_tap[NDIM];
  split(rest, s.by_window, tap);
  i64 place = row;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    at_tap[axis] = g.flip ? (int)g.window[axis] - 1 - tap[axis] : tap[axis];
    place = place * s.by_length[axis].by + at_tap[axis] * (int)g.dilation[axis];
  }
  ACC sum = s.start ? ZERO(ACC) : sums[thread];
  for (int part = 0; part < (int)s.parts; ++part) sum = plus(sum, values[part * s.c[0] + place] * (ACC)s.scale);
  if (!s.last) {
    sums[thread] = sum;
    return;
  }
  unsigned output = divide(input, s.by_inputs), group = divide(output, s.by_outputs);
  int k = (int)((s.group + group) * (g.k / g.groups) + s.output + output), c = (int)((s.group + group) * s.inputs + input);
  if (!is_finite(sum)) sum = (ACC)gradient_of(g, grad_y, x, k, c, at_tap);
  out[at(g.y, k, (int)input, tap)] = narrow(sum);
}

#endif
