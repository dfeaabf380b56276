// Convolution and both its gradients as a product of matrices that are gathered on the way, in the order of terms of
// accuracy="strict", and so with the same bits as the kernels of convolution.cu where a sum is not cut into parts.
//
//                  rows        columns              terms
//   forward        k           n and position of y  c and tap
//   input_grad     c           n and position of x  k and tap, of one phase of the stride
//   weight_grad    k           c and tap            n and position of y
//
// The first factor is w, or grad_y for the gradient of w; the second is x or grad_y, of which elements on padding are zeros. The
// offset of an element is the sum of one for its row or column and one for its term, and so is its position on each axis: those of
// terms are computed once for the block, a chunk at a time, and kept in shared memory.
//
// A block computes TM x TN results, from slices of TK terms that are copied to shared memory STAGES - 1 ahead; a thread has RM x RN.
// Terms may be cut into g.parts parts, whose sums are added by `sum_parts`.
//
// A result that is not finite may be one because a padding zero met a factor that is not: it is computed anew, term by term.

enum { TK = MMA && sizeof(IN) == 4 ? 16 : 8 };
enum { STAGES = TK == 16 ? (TM + TN <= 192 && NDIM <= 3 ? 3 : 2) : sizeof(ACC) <= 4 ? 4 : sizeof(ACC) == 8 ? 3 : 2 };
enum { CHUNK = 64, GAP = MMA ? 8 : 4, NOWHERE = -(1 << 30) };
enum { WARP_ROWS = 4 * RM, WARP_COLUMNS = 8 * RN, ACROSS = TN / WARP_COLUMNS, THREADS = 32 * ACROSS * (TM / WARP_ROWS) };
// Eight threads copy neighbouring terms of a row.
enum { LINE = 8, LINES = TK / LINE, BY_LINE = THREADS / LINE, BY_COLUMN = THREADS / TN };
enum { COPIES = TM * TK / THREADS, GATHERS = TN * TK / THREADS, AT_ONCE = GATHERS % 4 ? 2 : 4 };
// A thread's results in groups of neighbouring columns: their numbers, and which of its RM x RN a group has.
#if MMA
enum { TOGETHER = 2, COLUMN_GROUPS = RN, ROW_GROUPS = RM / 2 };
#define FIRST_COLUMN(u) (u)
#define FIRST_ROW(v) (2 * (v))
#define ROW_OF(v, l) (2 * (v) + (l))
#define COLUMN_OF(u, l) (u)
#else
enum { TOGETHER = 4, COLUMN_GROUPS = RN / 4, ROW_GROUPS = RM };
#define FIRST_COLUMN(u) (4 * (u))
#define FIRST_ROW(v) (v)
#define ROW_OF(v, l) (v)
#define COLUMN_OF(u, l) (4 * (u) + (l))
#endif
#define FORWARD 0
#define INPUT_GRAD 1
#define WEIGHT_GRAD 2
static_assert(THREADS % TN == 0 && TM % BY_LINE == 0 && TN % BY_LINE == 0, "a tile that threads do not share evenly");

// --- what is multiplied

struct Place { i64 offset; int at[NDIM]; };  // in bytes, of the second factor
struct alignas(16) Term { i64 second; int at[NDIM]; i64 first; };

// The sizes that a block counts in.
struct Block {
  Axis axes[NDIM];
  int rows, summed, begin, end, group, part, phase, row0, column0, columns;
};

__device__ __forceinline__ int columns_of(const Geometry &g) {
  if (OP == WEIGHT_GRAD) return divided(g.c, g.groups) * (int)product(g.window);
  i64 all = g.n;
  for (int axis = 0; axis < NDIM; ++axis) all *= results_of(g, axis, OP == INPUT_GRAD);
  return (int)all;
}

__device__ __forceinline__ int rows_of(const Geometry &g) { return divided(OP == INPUT_GRAD ? g.c : g.k, g.groups); }

// The block's place is (part, group, phase, tile of columns, tile of rows), the rows fastest: neighbours share what they gather.
__device__ __forceinline__ void locate(const Geometry &g, Block &block) {
  int index = (int)blockIdx.x, phase, terms = 1;
  block.rows = rows_of(g);
  block.columns = columns_of(g);
  block.row0 = take(index, (block.rows + TM - 1) / TM) * TM;
  block.column0 = take(index, (block.columns + TN - 1) / TN) * TN;
  int phases = 1;
  if (OP == INPUT_GRAD)
    for (int axis = 0; axis < NDIM; ++axis) phases *= (int)g.stride[axis];
  phase = block.phase = take(index, phases);
  block.group = take(index, (int)g.groups);
  block.part = index;
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    block.axes[axis] = axis_of(g, axis, OP == INPUT_GRAD, OP == INPUT_GRAD ? take(phase, (int)g.stride[axis]) : 0);
    terms *= OP == WEIGHT_GRAD ? block.axes[axis].count : block.axes[axis].taps;
  }
  block.summed = divided(OP == INPUT_GRAD ? g.k : g.c, g.groups);
  terms *= OP == WEIGHT_GRAD ? (int)g.n : block.summed;
  int length = (divided(terms + g.parts - 1, g.parts) + TK - 1) / TK * TK;
  block.begin = min(block.part * length, terms);
  block.end = min(block.begin + length, terms);
}

#if OP == WEIGHT_GRAD
#define SECOND g.b
#else
#define SECOND g.a
#endif

__device__ __forceinline__ Term term_at(const Geometry &g, const Block &block, int index) {
  Term term = {};
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    const Axis &a = block.axes[axis];
    int m = take(index, OP == WEIGHT_GRAD ? a.count : a.taps);
    term.at[axis] = OP == WEIGHT_GRAD ? m * a.scale : a.at + m * a.apart;
    term.first += OP == WEIGHT_GRAD ? m * g.a[2 + axis] : (a.tap + m * a.tap_step) * g.b[2 + axis];
    if (!COPYING) term.second += term.at[axis] * SECOND[2 + axis];
  }
  term.first += index * (OP == WEIGHT_GRAD ? g.a[0] : OP == INPUT_GRAD ? g.b[0] : g.b[1]);
  term.second += index * (OP == WEIGHT_GRAD ? g.b[0] : g.a[1]);
  term.first *= sizeof(IN);
  term.second *= sizeof(IN);
  return term;
}

__device__ __forceinline__ Place column_at(const Geometry &g, const Block &block, int index) {
  Place place = {0, {}};
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    const Axis &a = block.axes[axis];
    int j = take(index, OP == WEIGHT_GRAD ? a.taps : results_of(g, axis, OP == INPUT_GRAD));
    place.at[axis] = OP == WEIGHT_GRAD ? a.at + j * a.apart : j * a.scale;
    if (!COPYING) place.offset += place.at[axis] * SECOND[2 + axis];
  }
  place.offset += OP == WEIGHT_GRAD ? (block.group * block.summed + index) * g.b[1]
                                    : index * g.a[0] + block.group * (i64)block.summed * g.a[1];
  place.offset *= sizeof(IN);
  return place;
}

// In bytes.
__device__ __forceinline__ i64 row_at(const Geometry &g, const Block &block, int row) {
  i64 offset = row * (OP == WEIGHT_GRAD ? g.a[1] : OP == INPUT_GRAD ? g.b[1] : g.b[0]);
  offset += block.group * (i64)(OP == INPUT_GRAD ? block.summed : block.rows) * (OP == WEIGHT_GRAD ? g.a[1] : g.b[0]);
  return offset * (i64)sizeof(IN);
}

// Whether the second factor has an element there, which is none on padding; its offset in bytes.
__device__ __forceinline__ bool element(const Geometry &g, const int *sizes, const Place &column, const Term &term, i64 *offset) {
  bool inside = true;
  i64 where = column.offset + term.second;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    int position = column.at[axis] + term.at[axis];
#if COPYING
    if (axis == 0) inside = term.at[0] != NOWHERE;
    where += source(g, axis, inside ? position : 0) * SECOND[2 + axis] * (i64)sizeof(IN);
#else
    inside = inside && (unsigned)position < (unsigned)sizes[axis];
#endif
  }
  *offset = where;
  return inside;
}

__device__ __forceinline__ ACC multiplied(ACC first, ACC second, ACC sum) {
  if (OP == WEIGHT_GRAD) return madd(first, conjugate(second), sum);
  return madd(second, OP == INPUT_GRAD ? conjugate(first) : first, sum);
}

// The sum of one result of a part, without the terms on padding.
__device__ __forceinline__ ACC chain(const Geometry &g, const Block &block, const char *first, const char *second, int row, int column) {
  int sizes[NDIM];
  for (int axis = 0; axis < NDIM; ++axis) sizes[axis] = block.axes[axis].size;
  Place place = column_at(g, block, column);
  first += row_at(g, block, row);
  ACC sum = ZERO(ACC);
  for (int index = block.begin; index < block.end; ++index) {
    Term term = term_at(g, block, index);
    i64 offset;
    if (element(g, sizes, place, term, &offset))
      sum = multiplied(wide(*(const IN *)(first + term.first)), wide(*(const IN *)(second + offset)), sum);
  }
  return sum;
}

// --- results

#define NO_RESULT ((i64)1 << 62)

// The offset in y of a column of results; NO_RESULT where a phase has fewer of them than the largest.
__device__ __forceinline__ i64 result_at(const Geometry &g, const Block &block, int column) {
  i64 offset = 0;
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    const Axis &a = block.axes[axis];
    int j = take(column, OP == WEIGHT_GRAD ? a.taps : results_of(g, axis, OP == INPUT_GRAD));
    if (OP == INPUT_GRAD && j >= a.count) return NO_RESULT;
    offset += (OP == WEIGHT_GRAD ? j : a.place + j * a.place_step) * g.y[2 + axis];
  }
  return offset + column * (OP == WEIGHT_GRAD ? g.y[1] : g.y[0]);
}

// Neighbouring columns of one row, stored at once where they are neighbours in memory.
template <class T> __device__ __forceinline__ void store(T *row, const i64 (&where)[TOGETHER], const T (&values)[TOGETHER]) {
  bool together = where[0] != NO_RESULT && lined_up<T, TOGETHER>(row + where[0]);
#pragma unroll
  for (int l = 1; l < TOGETHER; ++l) together = together && where[l] == where[0] + l;
  if (together) {
    Neighbours<T, TOGETHER> all;
#pragma unroll
    for (int l = 0; l < TOGETHER; ++l) all.of[l] = values[l];
    *(Neighbours<T, TOGETHER> *)(row + where[0]) = all;
  } else {
#pragma unroll
    for (int l = 0; l < TOGETHER; ++l)
      if (where[l] != NO_RESULT) row[where[l]] = values[l];
  }
}

#define CHANNEL_STEP (OP == WEIGHT_GRAD ? g.y[0] : g.y[1])

// --- products of a slice

struct alignas(16) First { ACC of[TK][TM + GAP]; };
struct alignas(16) Second { ACC of[TK][TN + GAP]; };

#if MMA

// The place of a thread's result (i, j) in the tile of its warp, as m16n8k8 deals them out.
__device__ __forceinline__ int tile_row(int lane, int i, int) { return i / 4 * 16 + i % 4 / 2 * 8 + lane / 4; }
__device__ __forceinline__ int tile_column(int lane, int i, int j) { return j * 8 + lane % 4 * 2 + i % 2; }

// The hardware cuts a number off behind 10 bits of its fraction. To add some more than a quarter of the last of them makes the error
// zero in the mean, and leaves alone what needs no rounding: half types, and integers up to 2048.
__device__ __forceinline__ unsigned rounded(float v) {
  union { float value; unsigned bits; } both;
  both.value = sizeof(IN) < 4 ? v : fmaf(v, 1.375f / 4096, v);
  return both.bits;
}

__device__ __forceinline__ void multiply(const First &first, const Second &second, int row, int column, int lane, ACC (&sums)[RM][RN]) {
#ifdef NUMCONV_HOST
  for (int k = 0; k < TK; ++k)
    for (int i = 0; i < RM; ++i)
      for (int j = 0; j < RN; ++j)
        sums[i][j] = multiplied(first.of[k][row + tile_row(lane, i, j)], second.of[k][column + tile_column(lane, i, j)], sums[i][j]);
#else
  int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < TK; k += 8) {
    unsigned left[RM], right[2 * RN];
#pragma unroll
    for (int i = 0; i < RM; ++i) left[i] = rounded(first.of[k + t + i % 4 / 2 * 4][row + i / 4 * 16 + i % 2 * 8 + g]);
#pragma unroll
    for (int j = 0; j < 2 * RN; ++j) right[j] = rounded(second.of[k + t + j % 2 * 4][column + j / 2 * 8 + g]);
#pragma unroll
    for (int i = 0; i < RM; i += 4)
#pragma unroll
      for (int j = 0; j < RN; ++j)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sums[i][j]), "+f"(sums[i + 1][j]), "+f"(sums[i + 2][j]), "+f"(sums[i + 3][j])
            : "r"(left[i]), "r"(left[i + 1]), "r"(left[i + 2]), "r"(left[i + 3]), "r"(right[2 * j]), "r"(right[2 * j + 1]));
  }
#endif
}

#else

// Fours of rows and columns, so that a warp reads its 4 x 8 threads' fours without conflicts of banks.
__device__ __forceinline__ int tile_row(int lane, int i, int) { return i / 4 * 16 + lane / 8 * 4 + i % 4; }
__device__ __forceinline__ int tile_column(int lane, int, int j) { return j / 4 * 32 + lane % 8 * 4 + j % 4; }

__device__ __forceinline__ void multiply(const First &first, const Second &second, int row, int column, int lane, ACC (&sums)[RM][RN]) {
#pragma unroll
  for (int k = 0; k < TK; ++k) {
    Four<ACC> left[RM / 4], right[RN / 4];
#pragma unroll
    for (int i = 0; i < RM / 4; ++i) left[i] = *(const Four<ACC> *)&first.of[k][row + tile_row(lane, 4 * i, 0)];
#pragma unroll
    for (int j = 0; j < RN / 4; ++j) right[j] = *(const Four<ACC> *)&second.of[k][column + tile_column(lane, 0, 4 * j)];
#pragma unroll
    for (int i = 0; i < RM; ++i)
#pragma unroll
      for (int j = 0; j < RN; ++j) sums[i][j] = multiplied(left[i / 4].of[i % 4], right[j / 4].of[j % 4], sums[i][j]);
  }
}

#endif

#ifdef CONV_TILED

#if OP == WEIGHT_GRAD
#define FIRST_OF(a, b) (a)
#define SECOND_OF(a, b) (b)
#else
#define FIRST_OF(a, b) (b)
#define SECOND_OF(a, b) (a)
#endif

// What the threads of a block share.
struct Slices {
  First first[STAGES];
  Second second[STAGES];
  Term terms[2][CHUNK];
  Place places[OP == WEIGHT_GRAD ? TN : 1];
  Block block;
};

// Which elements a thread takes of each slice: one term of some rows, or LINES of them; of one column some terms, or for a gradient
// of w of some columns those of its rows.
#define COPIED_TERM(l) (thread % LINE + (l) % LINES * LINE)
#define COPIED_ROW(l) (thread / LINE + (l) / LINES * BY_LINE)
#if OP == WEIGHT_GRAD
#define GATHERED_TERM(l) COPIED_TERM(l)
#define GATHERED_COLUMN(l) COPIED_ROW(l)
#define GATHERED_PLACE(l) shared.places[GATHERED_COLUMN(l)]
#define GATHERED_BY(l) own[(l) % LINES]
#else
#define GATHERED_TERM(l) (thread / TN + (l) * BY_COLUMN)
#define GATHERED_COLUMN(l) (thread % TN)
#define GATHERED_PLACE(l) place
#define GATHERED_BY(l) terms[GATHERED_TERM(l)]
#endif

struct Share {
  const char *first, *second;
  int thread, sizes[NDIM];
  i64 rows[COPIES / LINES];
  Place place;
  ACC next_first[COPIED ? 1 : COPIES], next_second[COPIED ? 1 : GATHERS];  // on their way through registers

  __device__ __forceinline__ void start(const Geometry &g, Slices &shared) {
    const Block &block = shared.block;
#pragma unroll
    for (int axis = 0; axis < NDIM; ++axis) sizes[axis] = block.axes[axis].size;
#pragma unroll
    for (int l = 0; l < COPIES / LINES; ++l) rows[l] = row_at(g, block, min(block.row0 + thread / LINE + l * BY_LINE, block.rows - 1));
    if (OP != WEIGHT_GRAD) place = column_at(g, block, min(block.column0 + thread % TN, block.columns - 1));
    for (int i = thread; OP == WEIGHT_GRAD && i < TN; i += THREADS)
      shared.places[i] = column_at(g, block, min(block.column0 + i, block.columns - 1));
  }

  __device__ __forceinline__ void list_terms(const Geometry &g, Slices &shared, int chunk) const {
    const int begin = shared.block.begin, end = shared.block.end;
    for (int i = thread; i < CHUNK; i += THREADS) {
      int index = begin + chunk * CHUNK + i;
      Term term = term_at(g, shared.block, min(index, end - 1));
      if (index >= end) term.at[0] = NOWHERE;
      shared.terms[chunk % 2][i] = term;
    }
  }

  __device__ __forceinline__ void fetch(const Geometry &g, Slices &shared, int slice) {
    const Term *terms = shared.terms[slice * TK / CHUNK % 2] + slice * TK % CHUNK;
    Term own[LINES];
#pragma unroll
    for (int l = 0; l < LINES; ++l) own[l] = terms[COPIED_TERM(l)];
#pragma unroll
    for (int l = 0; l < COPIES; ++l) {
      const char *from = first + (rows[l / LINES] + own[l % LINES].first);
      if (COPIED)
        copy(&shared.first[slice % STAGES].of[COPIED_TERM(l)][COPIED_ROW(l)], from, true);
      else
        next_first[COPIED ? 0 : l] = wide(*(const IN *)from);
    }
#pragma unroll
    for (int l = 0; l < GATHERS; l += AT_ONCE) {
      i64 offsets[AT_ONCE];
      bool there[AT_ONCE];
#pragma unroll
      for (int m = 0; m < AT_ONCE; ++m) there[m] = element(g, sizes, GATHERED_PLACE(l + m), GATHERED_BY(l + m), &offsets[m]);
#pragma unroll
      for (int m = 0; m < AT_ONCE; ++m)
        if (COPIED)
          copy(&shared.second[slice % STAGES].of[GATHERED_TERM(l + m)][GATHERED_COLUMN(l + m)], second + offsets[m], there[m]);
        else
          next_second[COPIED ? 0 : l + m] = there[m] ? wide(*(const IN *)(second + offsets[m])) : ZERO(ACC);
    }
  }

  __device__ __forceinline__ void put(Slices &shared, int slice) const {
    if (COPIED) return;
#pragma unroll
    for (int l = 0; l < COPIES; ++l) shared.first[slice % STAGES].of[COPIED_TERM(l)][COPIED_ROW(l)] = next_first[COPIED ? 0 : l];
#pragma unroll
    for (int l = 0; l < GATHERS; ++l)
      shared.second[slice % STAGES].of[GATHERED_TERM(l)][GATHERED_COLUMN(l)] = next_second[COPIED ? 0 : l];
  }
};

// Writes what a thread has, whose warp begins at (row, column) of the tile, and computes anew what is not finite.
__device__ __forceinline__ void write(const Geometry &g, const Block &block, const Share &share, int row, int column, int lane,
                                      const ACC (&sums)[RM][RN], const IN *bias, OUT *y, ACC *sums_of_parts) {
  const int row0 = block.row0 + row, column0 = block.column0 + column, channel0 = block.group * block.rows + row0;
  const int rows = block.rows - row0, columns = block.columns - column0;  // that are left
  const i64 line = (block.part * g.groups + block.group) * (OP == INPUT_GRAD ? product(g.stride) : 1) + block.phase;
  ACC *part = sums_of_parts + (line * block.rows + row0) * block.columns + column0;
  unsigned long long odd = 0;  // which results are not finite
#pragma unroll
  for (int u = 0; u < COLUMN_GROUPS; ++u) {
    const int c = tile_column(lane, 0, FIRST_COLUMN(u));
    i64 where[TOGETHER];
#pragma unroll
    for (int l = 0; l < TOGETHER; ++l)
      where[l] = c + l >= columns ? NO_RESULT : sums_of_parts ? c + l : result_at(g, block, column0 + c + l);
#pragma unroll
    for (int v = 0; v < ROW_GROUPS; ++v) {
      const int r = tile_row(lane, FIRST_ROW(v), 0);
      ACC own[TOGETHER];
      OUT results[TOGETHER];
#pragma unroll
      for (int l = 0; l < TOGETHER; ++l) {
        own[l] = sums[ROW_OF(v, l)][COLUMN_OF(u, l)];
        odd |= (unsigned long long)strange(own[l]) << (ROW_OF(v, l) * RN + COLUMN_OF(u, l));
      }
      if (r >= rows) continue;
      if (sums_of_parts) {
        store(part + r * (i64)block.columns, where, own);
        continue;
      }
#pragma unroll
      for (int l = 0; l < TOGETHER; ++l) results[l] = finished(g, own[l], bias, channel0 + r);
      store(y + (channel0 + r) * CHANNEL_STEP, where, results);
    }
  }
#pragma unroll 1
  for (int result = 0; odd; ++result, odd >>= 1) {
    const int r = tile_row(lane, result / RN, result % RN), c = tile_column(lane, result / RN, result % RN);
    if (!(odd & 1) || r >= rows || c >= columns) continue;
    const ACC sum = chain(g, block, share.first, share.second, row0 + r, column0 + c);
    const i64 where = result_at(g, block, column0 + c);
    if (sums_of_parts)
      part[r * (i64)block.columns + c] = sum;
    else if (where != NO_RESULT)
      finish(g, sum, bias, channel0 + r, y + where + (channel0 + r) * CHANNEL_STEP);
  }
}

// a and b: the arrays of an operation in its order, (x, w), (grad_y, w) or (grad_y, x); y: the result. With `sums` the sums of parts
// are left there instead.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
    conv_tiled(Geometry g, const IN *a, const IN *b, const IN *bias, OUT *y, ACC *sums_of_parts) {
  __shared__ Slices shared;
  const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row = warp / ACROSS * WARP_ROWS, column = warp % ACROSS * WARP_COLUMNS;
  if (thread == 0) locate(g, shared.block);
  __syncthreads();
  const int slices = (shared.block.end - shared.block.begin + TK - 1) / TK;
  Share share;
  share.first = (const char *)FIRST_OF(a, b);
  share.second = (const char *)SECOND_OF(a, b);
  share.thread = thread;
  share.start(g, shared);
  ACC sums[RM][RN];
#pragma unroll
  for (int i = 0; i < RM; ++i)
#pragma unroll
    for (int j = 0; j < RN; ++j) sums[i][j] = ZERO(ACC);

  if (slices) share.list_terms(g, shared, 0);
  __syncthreads();
#pragma unroll 1
  for (int slice = 0; slice < STAGES - 1; ++slice) {
    if (slice < slices) share.fetch(g, shared, slice), share.put(shared, slice);
    close_group();
  }
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    wait_for_all_but<STAGES - 2>();
    __syncthreads();
    const int ahead = slice + STAGES - 1;
    if (ahead < slices) share.fetch(g, shared, ahead);
    close_group();
    if ((ahead + 1) * TK % CHUNK == 0 && ahead + 1 < slices) share.list_terms(g, shared, (ahead + 1) * TK / CHUNK);
    multiply(shared.first[slice % STAGES], shared.second[slice % STAGES], row, column, lane, sums);
    if (ahead < slices) share.put(shared, ahead);
  }
  write(g, shared.block, share, row, column, lane, sums, bias, y, sums_of_parts);
}

#endif

#ifdef SUM_PARTS

// The results from the sums of parts [parts, groups, phases, rows, columns], added up in their order.
extern "C" __global__ void sum_parts(Geometry g, const ACC *sums, const IN *bias, OUT *y) {
  int phases = OP == INPUT_GRAD ? (int)product(g.stride) : 1;
  Block block;
  block.rows = rows_of(g);
  block.columns = columns_of(g);
  i64 all = (i64)block.rows * block.columns * phases * g.groups, item = thread_index();
  if (item >= all) return;
  int index = (int)item, column = take(index, block.columns), row = take(index, block.rows), phase = take(index, phases);
  block.group = index;
  for (int axis = NDIM - 1; axis >= 0; --axis)
    block.axes[axis] = axis_of(g, axis, OP == INPUT_GRAD, OP == INPUT_GRAD ? take(phase, (int)g.stride[axis]) : 0);
  ACC sum = sums[item];
#pragma unroll 8
  for (int part = 1; part < (int)g.parts; ++part) sum = plus(sum, sums[part * all + item]);
  i64 where = result_at(g, block, column), channel = block.group * (i64)block.rows + row;
  if (where != NO_RESULT) finish(g, sum, bias, (int)channel, y + where + channel * CHANNEL_STEP);
}

#endif
