// Convolution and its gradient for x as a matrix product whose second factor is gathered on the way, with the same order of terms
// as the kernels of convolution.cu, and so the same bits.
//
// Rows are the channels of the result within a group, columns its positions through the batch; the inner dimension runs over the
// channels and taps that a result sums. A block of THREADS threads computes TM x TN results. Slices of TK terms go through
// registers to two buffers in shared memory, the next one while this one is multiplied; a thread multiplies RM x RN results out of
// registers. No term's place is divided into channel and tap more than once: it moves by additions with carries.
//
// A term on padding is a product with a zero. A block that meets a weight which is not finite computes its results anew, term by term.

#define NUMCONV_BARRIERS

enum { TK = 8, GAP = 4, THREADS = 128, LANES = TN / RN };
static_assert((TM / RM) * LANES == THREADS && THREADS % TN == 0 && THREADS % TK == 0, "a tile that threads do not share evenly");

// Four neighbours, read at once.
template <class T> struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four { T of[4]; };

template <class T> __device__ __forceinline__ void put(Four<T> *line, int place, T v) { line[place / 4].of[place % 4] = v; }

template <class T> __device__ __forceinline__ bool strange(T) { return false; }
__device__ __forceinline__ bool strange(float v) { return v - v != 0; }
__device__ __forceinline__ bool strange(double v) { return v - v != 0; }
template <class T> __device__ __forceinline__ bool strange(Complex<T> v) { return strange(v.re) || strange(v.im); }

#if GRADIENT
#define ROWS g.c
#define SUMMED g.k
#define POSITIONS g.spatial
#define ROW_STEP g.b[1]
#define TERM_STEP g.b[0]
#else
#define ROWS g.k
#define SUMMED g.c
#define POSITIONS g.output
#define ROW_STEP g.b[0]
#define TERM_STEP g.b[1]
#endif

// A term: a channel of the summed ones, and a tap.
struct Term { int channel, tap[NDIM]; };

__device__ __forceinline__ Term term_at(const Geometry &g, int index) {
  Term term;
  term.channel = (int)unravel(index, g.window, term.tap);
  return term;
}

__device__ __forceinline__ void move(const Geometry &g, Term &term, const Term &step) {
  int carry = 0;
#pragma unroll
  for (int axis = NDIM - 1; axis >= 0; --axis) {
    int size = (int)g.window[axis], tap = term.tap[axis] + step.tap[axis] + carry;
    carry = tap >= size;
    term.tap[axis] = carry ? tap - size : tap;
  }
  term.channel += step.channel + carry;
}

__device__ __forceinline__ int mirrored(const Geometry &g, int axis, int tap) {
  return g.flip ? (int)g.window[axis] - 1 - tap : tap;
}

// The element of x, or of grad_y, that a term of the result at `position` has; whether there is one.
__device__ __forceinline__ bool element(const Geometry &g, const int *position, const Term &term, i64 *offset) {
  bool inside = true;
  *offset += term.channel * g.a[1];
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    int tap = mirrored(g, axis, term.tap[axis]);
#if GRADIENT
    int distance = position[axis] + (int)g.low[axis] - tap * (int)g.dilation[axis], i = distance;
    if (g.stride[axis] > 1) {
      i = distance / (int)g.stride[axis];
      inside = inside && i * (int)g.stride[axis] == distance;
    }
    inside = inside && distance >= 0 && i < (int)g.output[axis];
#else
    int i = read_by(g, axis, position[axis], tap);
    inside = inside && i >= 0;
#endif
    *offset += i * g.a[2 + axis];
  }
  return inside;
}

__device__ __forceinline__ i64 weight_offset(const Geometry &g, i64 row, const Term &term) {
  i64 offset = row * ROW_STEP + term.channel * TERM_STEP;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) offset += term.tap[axis] * g.b[2 + axis];
  return offset;
}

__device__ __forceinline__ ACC weight_of(IN v) {
#if GRADIENT
  return conjugate(wide(v));
#else
  return wide(v);
#endif
}

// The sum of one result, without the terms on padding.
__device__ __forceinline__ ACC chain(const Geometry &g, const IN *x, const IN *w, const int *position, int terms) {
  Term term = term_at(g, 0), one = term_at(g, 1);
  ACC sum = ZERO(ACC);
  for (int index = 0; index < terms; ++index) {
    i64 offset = 0;
    if (element(g, position, term, &offset)) sum = madd(wide(x[offset]), weight_of(w[weight_offset(g, 0, term)]), sum);
    move(g, term, one);
  }
  return sum;
}

// a: x, or grad_y; b: w; y: the result. The block's place is (group, tile of rows, tile of columns), the columns fastest.
extern "C" __global__ void conv_tiled(Geometry g, const IN *x, const IN *w, const IN *bias, OUT *y) {
  __shared__ Four<ACC> weights[2][TK][(TM + GAP) / 4], values[2][TK][(TN + GAP) / 4];
  const int loads = TM * TK / THREADS, gathers = TN * TK / THREADS, step = THREADS / TN;
  int thread = (int)threadIdx.x, rows = (int)(ROWS / g.groups), summed = (int)(SUMMED / g.groups);
  int terms = summed * (int)product(g.window);
  i64 volume = product(POSITIONS), columns = g.n * volume;
  i64 across = (columns + TN - 1) / TN, down = (rows + TM - 1) / TM;
  i64 group = blockIdx.x / (across * down), row0 = blockIdx.x / across % down * TM, column0 = blockIdx.x % across * TN;
  x += group * summed * g.a[1];
  w += group * (GRADIENT ? summed : rows) * g.b[0];

  // A thread loads one column of the second factor, and one term of each slice of the first.
  i64 column = column0 + thread % TN;
  int position[NDIM];
  i64 image = unravel(min(column, columns - 1), POSITIONS, position) * g.a[0];
#if WIDE
  int first_line = thread / 2, first_inner = thread % 2 * 4;  // four terms of a row, which are neighbours
#else
  int first_line = thread / TK, first_inner = thread % TK;
#endif
  Term slice = term_at(g, TK), skip = term_at(g, step);
  Term weight_term = term_at(g, first_inner), value_term = term_at(g, thread / TN);

  ACC next_weights[loads], next_values[gathers], sums[RM][RN];
#pragma unroll
  for (int i = 0; i < RM; ++i)
#pragma unroll
    for (int j = 0; j < RN; ++j) sums[i][j] = ZERO(ACC);
  int odd = 0;
  int own_row = thread / LANES * 4, own_column = thread % LANES * 4;

  for (int begin = -TK, buffer = 1; begin < terms; begin += TK, buffer ^= 1) {
    int ahead = begin + TK;
    if (ahead < terms) {
#if WIDE
      Four<IN> four = {};
      bool there = row0 + first_line < rows && ahead + first_inner < terms;
      if (there) four = *(const Four<IN> *)(w + (row0 + first_line) * ROW_STEP + ahead + first_inner);
#pragma unroll
      for (int l = 0; l < loads; ++l) next_weights[l] = there ? weight_of(four.of[l]) : ZERO(ACC);
#else
#pragma unroll
      for (int l = 0; l < loads; ++l) {
        i64 row = row0 + first_line + l * (THREADS / TK);
        bool there = row < rows && ahead + first_inner < terms;
        next_weights[l] = there ? weight_of(w[weight_offset(g, row, weight_term)]) : ZERO(ACC);
      }
      move(g, weight_term, slice);
#endif
#pragma unroll
      for (int l = 0; l < gathers; ++l) {
        i64 offset = image;
        bool there = column < columns && ahead + thread / TN + l * step < terms && element(g, position, value_term, &offset);
        next_values[l] = there ? wide(x[offset]) : ZERO(ACC);
        move(g, value_term, skip);
      }
    }
    if (begin >= 0) {
#pragma unroll
      for (int k = 0; k < TK; ++k) {
        ACC left[RM], right[RN];
#pragma unroll
        for (int i = 0; i < RM; i += 4) {
          Four<ACC> four = weights[buffer][k][i / 4 * (TM / RM) + own_row / 4];
#pragma unroll
          for (int l = 0; l < 4; ++l) left[i + l] = four.of[l];
        }
#pragma unroll
        for (int j = 0; j < RN; j += 4) {
          Four<ACC> four = values[buffer][k][j / 4 * (TN / RN) + own_column / 4];
#pragma unroll
          for (int l = 0; l < 4; ++l) right[j + l] = four.of[l];
        }
#pragma unroll
        for (int i = 0; i < RM; ++i)
#pragma unroll
          for (int j = 0; j < RN; ++j) sums[i][j] = madd(right[j], left[i], sums[i][j]);
      }
    }
    if (ahead < terms) {
#pragma unroll
      for (int l = 0; l < loads; ++l) {
        odd |= strange(next_weights[l]);
#if WIDE
        put(weights[buffer ^ 1][first_inner + l], first_line, next_weights[l]);
#else
        put(weights[buffer ^ 1][first_inner], first_line + l * (THREADS / TK), next_weights[l]);
#endif
      }
#pragma unroll
      for (int l = 0; l < gathers; ++l) put(values[buffer ^ 1][thread / TN + l * step], thread % TN, next_values[l]);
    }
    __syncthreads();
  }

  // One body for all results, which lie in memory of the thread's own for it: a copy for each would take many seconds to compile.
  bool again = __syncthreads_or(odd) != 0;
  ACC results[RM * RN];
#pragma unroll
  for (int result = 0; result < RM * RN; ++result) results[result] = sums[result % RM][result / RM];
#pragma unroll 1
  for (int result = 0; result < RM * RN; ++result) {
    int i = result % RM, j = result / RM, where[NDIM];
    i64 row = row0 + i / 4 * (4 * TM / RM) + own_row + i % 4, at_column = column0 + j / 4 * (4 * TN / RN) + own_column + j % 4;
    if (row >= rows || at_column >= columns) continue;
    i64 n = unravel(at_column, POSITIONS, where), channel = group * rows + row;
    ACC sum = again ? chain(g, x + n * g.a[0], w + row * ROW_STEP, where, terms) : results[result];
    finish(g, sum, bias, (int)channel, y + at(g.y, n, channel, where));
  }
}
