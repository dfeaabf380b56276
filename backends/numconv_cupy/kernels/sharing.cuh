// What kernels need whose threads share memory: fours of neighbours, copies past the registers, results that are not finite.

#define NUMCONV_BARRIERS

// What a launch gives to a block.
#ifndef NUMCONV_HOST
#define DYNAMIC_MEMORY(TYPE, NAME) extern __shared__ TYPE NAME[]
#endif

// Neighbours, read or written at once.
template <class T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Neighbours { T of[N]; };
template <class T> using Four = Neighbours<T, 4>;

template <class T, int N> __device__ __forceinline__ bool lined_up(const T *first) {
  return (unsigned long long)first % alignof(Neighbours<T, N>) == 0;
}

template <class T> __device__ __forceinline__ bool strange(T) { return false; }
__device__ __forceinline__ bool strange(float v) { return v - v != 0; }
__device__ __forceinline__ bool strange(double v) { return v - v != 0; }
template <class T> __device__ __forceinline__ bool strange(Complex<T> v) { return strange(v.re) || strange(v.im); }

template <class A, class B> struct Same { enum { value = 0 }; };
template <class A> struct Same<A, A> { enum { value = 1 }; };
// Whether elements go to shared memory as they are, past the registers: those that always lie at multiples of their size.
enum { COPIED = Same<IN, ACC>::value && sizeof(IN) >= 4 && alignof(IN) == sizeof(IN) };

// Hardware before compute capability 8.0 waits for what it copies.
#if defined(NUMCONV_HOST) || __CUDA_ARCH__ < 800
#define IN_ORDER
#endif

__device__ __forceinline__ void copy(ACC *target, const char *from, bool there) {
#ifdef IN_ORDER
  *target = there ? *(const ACC *)from : ZERO(ACC);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(target)), "l"(from),
               "n"(COPIED ? (int)sizeof(ACC) : 16), "r"(there ? (int)sizeof(ACC) : 0)
               : "memory");
#endif
}

__device__ __forceinline__ void close_group() {
#ifndef IN_ORDER
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int GROUPS> __device__ __forceinline__ void wait_for_all_but() {
#ifndef IN_ORDER
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}
