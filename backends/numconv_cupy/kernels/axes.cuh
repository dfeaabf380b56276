// One axis of a convolution as a correlation: result j reads position j * scale + at + m * apart of the source by its m-th tap.
//
// A gradient of x with a stride falls into phases, the results whose positions leave the same rest: each has some of the taps and
// is a correlation with step 1. Taps are in the order of w, whatever they read.

// --- counting in 32 bits

__device__ __forceinline__ int divided(i64 a, i64 b) { return (int)((unsigned)a / (unsigned)b); }

__device__ __forceinline__ int take(int &index, int size) {
  int rest = divided(index, size), position = index - rest * size;
  index = rest;
  return position;
}

// --- an axis

struct Axis {
  int taps, tap, tap_step;  // the m-th tap is w's number tap + m * tap_step
  int at, apart, scale;
  int size;                     // positions of the source
  int count, place, place_step;  // results, the j-th of which lies at place + j * place_step
};

__device__ __forceinline__ Axis axis_of(const Geometry &g, int axis, bool gradient, int phase) {
  int window = (int)g.window[axis], stride = (int)g.stride[axis], low = (int)g.low[axis], dilation = (int)g.dilation[axis];
  if (!gradient) {
    int at = g.flip ? (window - 1) * dilation - low : -low;
    return {window, 0, 1, at, g.flip ? -dilation : dilation, stride, (int)g.spatial[axis], (int)g.output[axis], 0, 1};
  }
  int every = 1, first = 0, reach = phase + low;
  while (every * dilation % stride) ++every;
  while (first < every && modulo(reach - first * dilation, stride)) ++first;
  int taps = first == every || first >= window ? 0 : (window - first + every - 1) / every;
  int last = first + (taps - 1) * every, apart = every * dilation / stride, size = (int)g.spatial[axis];
  int count = phase < size ? (size - phase + stride - 1) / stride : 0;
  if (!taps) return {0, 0, 0, 0, 0, 1, (int)g.output[axis], count, phase, stride};
  if (g.flip) return {taps, window - 1 - last, every, (reach - last * dilation) / stride, apart, 1, (int)g.output[axis], count, phase, stride};
  return {taps, first, every, (reach - first * dilation) / stride, -apart, 1, (int)g.output[axis], count, phase, stride};
}

// Results on an axis, of the largest phase.
__device__ __forceinline__ int results_of(const Geometry &g, int axis, bool gradient) {
  return gradient ? divided(g.spatial[axis] + g.stride[axis] - 1, g.stride[axis]) : (int)g.output[axis];
}
