// Values moved: padding, unfold and fold, max_unpool, and their adjoints.

#ifdef GATHER

// Columns [N, C, *R, *Q] of x; padding is the case of a window of one tap. a: x; the strides of a column are those of y for
// channel and batch, `taps` for the tap and b for the position.
extern "C" __global__ void gather(Geometry g, i64 taps, const IN *x, OUT *columns) {
  i64 item = thread_index(), window = product(g.window);
  int q[NDIM], t[NDIM];
  if (item >= g.n * g.c * window * product(g.output)) return;
  i64 rest = unravel(item, g.output, q), tap = rest % window, channel = rest / window % g.c, image = rest / window / g.c;
  unravel(tap, g.window, t);
  i64 offset = image * g.a[0] + channel * g.a[1];
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < NDIM; ++axis) {
    int i = read_by(g, axis, q[axis], t[axis]);
    inside = inside && i >= 0;
    offset += i * g.a[2 + axis];
  }
  columns[at(g.b, image, channel, q) + tap * taps] = inside ? Convert<OUT, IN>::of(x[offset]) : ZERO(OUT);
}

#endif

#ifdef ADD_BACK

// The adjoint of gather: each column is added where it was read. a: columns, with `taps` the step of a tap; y: grad_x.
extern "C" __global__ void add_back(Geometry g, i64 taps, const IN *columns, OUT *x) {
  i64 item = thread_index();
  int i[NDIM], q[NDIM], t[NDIM];
  if (item >= g.n * g.c * product(g.spatial)) return;
  i64 rest = unravel(item, g.spatial, i), channel = rest % g.c, image = rest / g.c, tap = 0;
  ACC sum = ZERO(ACC);
  clear(t);
  do {
    for (bool some = first_output(g, i, t, q); some; some = following_output(g, i, t, q))
      sum = plus(sum, wide(columns[at(g.a, image, channel, q) + tap * taps]));
    ++tap;
  } while (advance(g.window, t));
  x[at(g.y, image, channel, i)] = narrow(sum);
}

#endif

#ifdef OWNERS

// Which element of y [N, C, *Q] stays at each position of x, the last in row-major order, -1 where there is none; [N, C, prod(S)].
// The positions of a channel are dealt out to `shares` threads; an index outside the channel belongs to nobody. a: indices.
extern "C" __global__ void owners(Geometry g, i64 shares, const i64 *indices, i64 *found) {
  i64 item = thread_index(), share = item % shares, channel = item / shares % g.c, image = item / shares / g.c;
  i64 volume = product(g.spatial), element = 0;
  int q[NDIM];
  if (image >= g.n) return;
  i64 *own = found + (image * g.c + channel) * volume;
  for (i64 i = share; i < volume; i += shares) own[i] = -1;
  clear(q);
  do {
    i64 index = indices[at(g.a, image, channel, q)];
    if (index >= 0 && index < volume && index % shares == share) own[index] = element;
    ++element;
  } while (advance(g.output, q));
}

#endif

#ifdef PLACE

// max_unpool: each position of x takes the element that owns it, or 0. a: y, y: x.
extern "C" __global__ void place(Geometry g, const IN *values, const i64 *found, OUT *x) {
  i64 item = thread_index();
  int i[NDIM], q[NDIM];
  if (item >= g.n * g.c * product(g.spatial)) return;
  i64 rest = unravel(item, g.spatial, i), channel = rest % g.c, image = rest / g.c;
  OUT value = ZERO(OUT);
  if (found[item] >= 0) {
    unravel(found[item], g.output, q);
    value = Convert<OUT, IN>::of(values[at(g.a, image, channel, q)]);
  }
  x[at(g.y, image, channel, i)] = value;
}

#endif

#ifdef PICK

// Its gradient: each element of y takes the value of grad_x where it stayed, or 0. a: grad_x, b: indices, y: grad_y.
extern "C" __global__ void pick(Geometry g, const IN *gradient, const i64 *indices, const i64 *found, OUT *grad_y) {
  i64 item = thread_index(), volume = product(g.spatial), outputs = product(g.output);
  int i[NDIM], q[NDIM];
  if (item >= g.n * g.c * outputs) return;
  i64 rest = unravel(item, g.output, q), channel = rest % g.c, image = rest / g.c;
  i64 index = indices[at(g.b, image, channel, q)];
  OUT value = ZERO(OUT);
  if (index >= 0 && index < volume && found[rest * volume + index] == item % outputs) {
    unravel(index, g.spatial, i);
    value = Convert<OUT, IN>::of(gradient[at(g.a, image, channel, i)]);
  }
  grad_y[at(g.y, image, channel, q)] = value;
}

#endif
