// Winograd convolution F(4x4, 3x3) and its gradient for w, F(3x3, 4x4), by A. Lavin and S. Gray, "Fast Algorithms for Convolutional
// Neural Networks" (CVPR 2016), section 4: what lies before and behind the matrix products, of which there is one for each of 6 x 6
// points. The points of an axis are 0, 1, -1, 1/2, -2 and infinity: with them the error in float32 is a third of that with 0, 1, -1,
// 2, -2 and infinity.
//
// A tile is 4 x 4 results, or outputs that a gradient sums. All arrays of points have the tile, or the last channel, fastest, so that
// neighbouring threads write neighbours. Where a result is not finite, be it that a factor is not or that a transform overflowed, the
// results of the tile are computed anew, term by term: a product of points that has a NaN or an infinity in it spoils all of them.
//
// GRADIENT: the result is the gradient for x, a convolution of grad_y with w, turned and its channels exchanged.

enum { TILE = 4, TAPS = 3, SIDE = TILE + TAPS - 1, POINTS = SIDE * SIDE };

__device__ __forceinline__ bool finite(ACC v) { return v - v == 0; }

// --- transforms of an axis: values `STEP` apart

template <int STEP> __device__ __forceinline__ void values_to_points(ACC *v) {
  ACC a = v[0], b = v[STEP], c = v[2 * STEP], d = v[3 * STEP], e = v[4 * STEP], f = v[5 * STEP];
  ACC odd = d - b, even = e - c;
  v[0] = a + (even - c) + (ACC)1.5 * odd;
  v[STEP] = (e - b) + (ACC)0.5 * c + (ACC)2.5 * d;
  v[2 * STEP] = (e + b) + (ACC)0.5 * d - (ACC)2.5 * c;
  v[3 * STEP] = even + (ACC)2 * odd;
  v[4 * STEP] = even - (ACC)0.5 * odd;
  v[5 * STEP] = f - d - odd + (ACC)1.5 * even;
}

// Of `COUNT` values, three taps or four outputs, the others hold nothing.
template <int STEP, int COUNT> __device__ __forceinline__ void factors_to_points(ACC *v) {
  const ACC third = (ACC)1 / 3, fifteenth = (ACC)1 / 15;
  ACC a = v[0], b = v[STEP], c = v[2 * STEP], d = COUNT == 4 ? v[3 * STEP] : (ACC)0;
  v[STEP] = third * ((a + c) + (b + d));
  v[2 * STEP] = third * ((b + d) - (a + c));
  v[3 * STEP] = fifteenth * (ACC)-2 * ((ACC)2 * ((ACC)4 * a + c) + ((ACC)4 * b + d));
  v[4 * STEP] = fifteenth * (a + (ACC)4 * c - (ACC)2 * (b + (ACC)4 * d));
  v[5 * STEP] = COUNT == 4 ? d : c;
}

// `COUNT` results of six points.
template <int STEP, int COUNT> __device__ __forceinline__ void points_to_results(ACC *v) {
  ACC b = v[STEP], c = v[2 * STEP], d = v[3 * STEP], e = v[4 * STEP], f = v[5 * STEP];
  ACC sum = b + c, difference = b - c;
  v[0] = v[0] + sum + (d + e);
  v[STEP] = difference + (ACC)0.5 * d - (ACC)2 * e;
  v[2 * STEP] = sum + (ACC)0.25 * d + (ACC)4 * e + (COUNT == 3 ? f : (ACC)0);
  if (COUNT == 4) v[3 * STEP] = difference + (ACC)0.125 * d - (ACC)8 * e + f;
}

// --- transforms of both axes

template <int COUNT> __device__ __forceinline__ void factors_to_all_points(ACC *v) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) factors_to_points<1, COUNT>(v + i * SIDE);
#pragma unroll
  for (int j = 0; j < SIDE; ++j) factors_to_points<SIDE, COUNT>(v + j);
}

// Whether all `COUNT` x `COUNT` results are finite.
template <int COUNT> __device__ __forceinline__ bool points_to_all_results(ACC *v) {
#pragma unroll
  for (int j = 0; j < SIDE; ++j) points_to_results<SIDE, COUNT>(v + j);
  bool fine = true;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    points_to_results<1, COUNT>(v + i * SIDE);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) fine = fine && finite(v[i * SIDE + j]);
  }
  return fine;
}

// The tiles of some images, numbered through: `share` of them in a part, `across` in all parts, the last of which may be short.
struct Tiles { unsigned images, all, share, across; };

struct Place { unsigned channel, part, rest, image; int first[NDIM]; };

// Where thread `item` of [channels, parts * share] stands: its channel, part and the place in it, the image and the first element of
// its tile. Divisions of 32 bits: those of 64 would take longer than all else.
__device__ __forceinline__ Place locate(const Geometry &g, const Tiles &tiles, unsigned item) {
  Place place;
  place.channel = item / tiles.across;
  unsigned tile = item - place.channel * tiles.across;
  place.part = tile / tiles.share;
  place.rest = tile - place.part * tiles.share;
  unsigned down = (unsigned)g.count[0], wide = (unsigned)g.count[1], row = tile / wide;
  place.image = row / down;
  place.first[0] = (int)(row - place.image * down) * TILE;
  place.first[1] = (int)(tile - row * wide) * TILE;
  return place;
}

// [POINTS, parts, channels, share]
__device__ __forceinline__ void write_points(const ACC *v, ACC *points, unsigned channels, const Tiles &tiles, const Place &at) {
  i64 plane = (i64)channels * tiles.across;
  points += ((i64)at.part * channels + at.channel) * tiles.share + at.rest;
#pragma unroll
  for (int p = 0; p < POINTS; ++p, points += plane) *points = v[p];
}

#ifdef CONV_WINOGRAD_INPUT

// x, or grad_y, to points: [POINTS, parts, channels, tiles of a part]. a: the source, whose size is `spatial`.
extern "C" __global__ void conv_winograd_input(Geometry g, Tiles tiles, const IN *x, ACC *points, i64 image0) {
  unsigned item = (unsigned)thread_index(), channels = (unsigned)g.c;
  if (item >= channels * tiles.across) return;
  Place at = locate(g, tiles, item);
  bool there = at.image < tiles.images;
  x += there ? (image0 + at.image) * g.a[0] + at.channel * g.a[1] : 0;
  i64 offsets[SIDE];
  bool inside[SIDE];
#pragma unroll
  for (int j = 0; j < SIDE; ++j) {
    int column = source(g, 1, at.first[1] + j - (int)g.low[1]);
    inside[j] = there && column >= 0;
    offsets[j] = column * g.a[3];
  }
  ACC v[POINTS];
#pragma unroll
  for (int i = 0; i < SIDE; ++i) {
    int row = source(g, 0, at.first[0] + i - (int)g.low[0]);
    const IN *line = x + row * g.a[2];
#pragma unroll
    for (int j = 0; j < SIDE; ++j) v[i * SIDE + j] = row >= 0 && inside[j] ? wide(line[offsets[j]]) : (ACC)0;
  }
#pragma unroll
  for (int i = 0; i < SIDE; ++i) values_to_points<1>(v + i * SIDE);
#pragma unroll
  for (int j = 0; j < SIDE; ++j) values_to_points<SIDE>(v + j);
  write_points(v, points, channels, tiles, at);
}

#endif

#ifdef CONV_WINOGRAD_GRADIENT

// grad_y to points: [POINTS, parts, K, tiles of a part]. a: grad_y.
extern "C" __global__ void conv_winograd_gradient(Geometry g, Tiles tiles, const IN *y, ACC *points, i64 image0) {
  unsigned item = (unsigned)thread_index(), channels = (unsigned)g.k;
  if (item >= channels * tiles.across) return;
  Place at = locate(g, tiles, item);
  bool there = at.image < tiles.images;
  y += there ? (image0 + at.image) * g.a[0] + at.channel * g.a[1] : 0;
  ACC v[POINTS];
#pragma unroll
  for (int i = 0; i < TILE; ++i) {
    int row = at.first[0] + i;
    const IN *line = y + row * g.a[2] + at.first[1] * g.a[3];
#pragma unroll
    for (int j = 0; j < TILE; ++j) {
      bool inside = there && row < (int)g.output[0] && at.first[1] + j < (int)g.output[1];
      v[i * SIDE + j] = inside ? wide(line[j * g.a[3]]) : (ACC)0;
    }
  }
  factors_to_all_points<TILE>(v);
  write_points(v, points, channels, tiles, at);
}

#endif

#if defined(CONV_WINOGRAD_WEIGHTS) || defined(CONV_WINOGRAD_OUTPUT)

#if GRADIENT
#define ROWS g.c
#define SUMMED g.k
#else
#define ROWS g.k
#define SUMMED g.c
#endif

// Where a tap of the convolution that is computed lies in w, for a row and a summed channel of a group.
__device__ __forceinline__ i64 weight_at(const Geometry &g, i64 group, i64 row, i64 inner, int i, int j) {
  bool turned = GRADIENT != (g.flip != 0);
  int first = turned ? TAPS - 1 - i : i, second = turned ? TAPS - 1 - j : j;
  i64 rows = ROWS / g.groups, summed = SUMMED / g.groups;
  i64 k = GRADIENT ? group * summed + inner : group * rows + row, c = GRADIENT ? row : inner;
  return k * g.b[0] + c * g.b[1] + first * g.b[2] + second * g.b[3];
}

#endif

#ifdef CONV_WINOGRAD_WEIGHTS

// w to points: [POINTS, G, rows, summed channels]. b: w.
extern "C" __global__ void conv_winograd_weights(Geometry g, const IN *w, ACC *points) {
  i64 item = thread_index(), rows = ROWS / g.groups, summed = SUMMED / g.groups, all = g.groups * rows * summed;
  if (item >= all) return;
  i64 inner = item % summed, row = item / summed % rows, group = item / summed / rows;
  ACC v[POINTS];
#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < TAPS; ++j) v[i * SIDE + j] = wide(w[weight_at(g, group, row, inner, i, j)]);
  factors_to_all_points<TAPS>(v);
#pragma unroll
  for (int p = 0; p < POINTS; ++p) points[p * all + item] = v[p];
}

#endif

#ifdef CONV_WINOGRAD_OUTPUT

// One result, term by term.
__device__ ACC chain(const Geometry &g, const IN *x, const IN *w, i64 group, i64 row, int q0, int q1) {
  i64 summed = SUMMED / g.groups;
  ACC sum = (ACC)0;
  for (i64 inner = 0; inner < summed; ++inner)
    for (int i = 0; i < TAPS; ++i)
      for (int j = 0; j < TAPS; ++j) {
        int at0 = source(g, 0, q0 + i - (int)g.low[0]), at1 = source(g, 1, q1 + j - (int)g.low[1]);
        if (at0 < 0 || at1 < 0) continue;
        ACC value = wide(x[(group * summed + inner) * g.a[1] + at0 * g.a[2] + at1 * g.a[3]]);
        sum = madd(value, wide(w[weight_at(g, group, row, inner, i, j)]), sum);
      }
  return sum;
}

// Four results that are neighbours, written at once.
struct alignas(4 * sizeof(OUT) < 16 ? 4 * sizeof(OUT) : 16) Row { OUT of[TILE]; };

// Points, [POINTS, rows of all groups, tiles], to results with the bias and the activation. a: the source, b: w, y: the result,
// whose size is `output`; in_order: whether the results of a tile's row are neighbours, and all rows aligned alike.
extern "C" __global__ void conv_winograd_output(Geometry g, Tiles tiles, const ACC *points, const IN *x, const IN *w,
                                                const IN *bias, OUT *y, i64 image0, i64 in_order) {
  unsigned item = (unsigned)thread_index(), all = (unsigned)ROWS * tiles.all;
  if (item >= all) return;
  Place at = locate(g, tiles, item);
  ACC v[POINTS];
  points += item;
#pragma unroll
  for (int p = 0; p < POINTS; ++p, points += all) v[p] = *points;
  bool fine = points_to_all_results<TILE>(v);
  int channel = (int)at.channel, high = (int)g.output[0] - at.first[0], across = (int)g.output[1] - at.first[1];
  y += (image0 + at.image) * g.y[0] + channel * g.y[1] + at.first[0] * g.y[2] + at.first[1] * g.y[3];
  if (!fine) {
    i64 rows = ROWS / g.groups;
    x += (image0 + at.image) * g.a[0];
#pragma unroll 1
    for (int i = 0; i < TILE * TILE; ++i) {
      if (i / TILE >= high || i % TILE >= across) continue;
      ACC sum = chain(g, x, w, channel / rows, channel % rows, at.first[0] + i / TILE, at.first[1] + i % TILE);
      finish(g, sum, bias, channel, y + i / TILE * g.y[2] + i % TILE * g.y[3]);
    }
    return;
  }
  bool whole = in_order && across >= TILE && (unsigned long long)y % alignof(Row) == 0;
#pragma unroll
  for (int i = 0; i < TILE; ++i, y += g.y[2]) {
    if (i >= high) return;
    Row row;
#pragma unroll
    for (int j = 0; j < TILE; ++j) finish(g, v[i * SIDE + j], bias, channel, row.of + j);
    if (whole) {
      *(Row *)y = row;
    } else {
#pragma unroll
      for (int j = 0; j < TILE; ++j)
        if (j < across) y[j * g.y[3]] = row.of[j];
    }
  }
}

#endif

#ifdef CONV_WINOGRAD_TAPS

// One tap of a gradient for w, term by term.
__device__ ACC chain(const Geometry &g, const IN *y, const IN *x, int i, int j) {
  ACC sum = (ACC)0;
  for (i64 n = 0; n < g.n; ++n)
    for (int q0 = 0; q0 < g.output[0]; ++q0)
      for (int q1 = 0; q1 < g.output[1]; ++q1) {
        int at0 = source(g, 0, q0 + i - (int)g.low[0]), at1 = source(g, 1, q1 + j - (int)g.low[1]);
        if (at0 < 0 || at1 < 0) continue;
        sum = madd(wide(y[n * g.a[0] + q0 * g.a[2] + q1 * g.a[3]]), wide(x[n * g.b[0] + at0 * g.b[2] + at1 * g.b[3]]), sum);
      }
  return sum;
}

__device__ __forceinline__ i64 tap_at(const Geometry &g, int i, int j) {
  return (g.flip ? TAPS - 1 - i : i) * g.y[2] + (g.flip ? TAPS - 1 - j : j) * g.y[3];
}

// Points, [POINTS, K, C / G], to the gradient for w. a: grad_y, b: x, y: the gradient.
extern "C" __global__ void conv_winograd_taps(Geometry g, const ACC *points, const IN *y, const IN *x, OUT *w) {
  unsigned item = (unsigned)thread_index(), inputs = (unsigned)(g.c / g.groups), all = (unsigned)g.k * inputs;
  if (item >= all) return;
  unsigned k = item / inputs, c = item - k * inputs;
  ACC v[POINTS];
#pragma unroll
  for (int p = 0; p < POINTS; ++p) v[p] = points[(i64)p * all + item];
  bool fine = points_to_all_results<TAPS>(v);
  y += k * g.a[1];
  x += (k / (g.k / g.groups) * inputs + c) * g.b[1];
  w += k * g.y[0] + c * g.y[1];
  if (!fine) {
#pragma unroll 1
    for (int tap = 0; tap < TAPS * TAPS; ++tap) w[tap_at(g, tap / TAPS, tap % TAPS)] = narrow(chain(g, y, x, tap / TAPS, tap % TAPS));
    return;
  }
#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < TAPS; ++j) w[tap_at(g, i, j)] = narrow(v[i * SIDE + j]);
}

#endif

#ifdef CONV_WINOGRAD_SUMS

// [POINTS, parts, count] summed over the parts, in order; behind what is there already if these are not the first images.
extern "C" __global__ void conv_winograd_sums(const ACC *parts, ACC *sums, i64 count, i64 number, i64 first_image) {
  i64 item = thread_index();
  if (item >= POINTS * count) return;
  parts += item / count * number * count + item % count;
  ACC sum = first_image ? sums[item] : (ACC)0;
  for (i64 part = 0; part < number; ++part) sum += parts[part * count];
  sums[item] = sum;
}

#endif
