// Splits a range of independent work over the OpenMP threads; serial where OpenMP is off.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace qwen2 {

inline int parallel_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Of the calling thread, inside of a parallel part.
inline int parallel_thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Calls f(begin, end) once a thread with neighbouring parts of [0, count).
template <class F>
void parallel_ranges(int64_t count, const F& f) {
#ifdef _OPENMP
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num();
    const int64_t threads = omp_get_num_threads();
    f(count * thread / threads, count * (thread + 1) / threads);
  }
#else
  f(int64_t{0}, count);
#endif
}

// Calls f(i) for every i in [0, count), handing out single items as threads become free.
template <class F>
void parallel_items(int64_t count, const F& f) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) f(i);
}

}  // namespace qwen2
